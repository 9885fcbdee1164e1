# SPDX-License-Identifier: Apache-2.0
"""Templates that would take all memory or never end, if nothing bounded them."""

from __future__ import annotations

from tc_export.runtime.template import SOURCE_CHARACTERS

DOUBLE_60 = "{% for i in range(60) %}"
HOSTILE = {
    "doubling with +": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling with ~": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling in a block": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "doubling in a macro": "{% macro m(d) %}ab{{ m(d - 1) ~ m(d - 1) if d }}{% endmacro %}"
    "{{ m(60) }}",
    "doubling in a silent macro": "{% macro m(d) %}"
    "{% if d %}{{ m(d - 1) }}{{ m(d - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "doubling dictionaries, compared": "{% set n = namespace(x=[1], y=[1]) %}"
    + DOUBLE_60
    + "{% set n.x = {'a': n.x, 'b': n.x} %}{% set n.y = {'a': n.y, 'b': n.y} %}{% endfor %}"
    "{{ n.x == n.y }}",
    "doubling tuples, compared": "{% set n = namespace(x=(1,), y=(1,)) %}"
    + DOUBLE_60
    + "{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}{{ n.x == n.y }}",
    "doubling lists": "{% set n = namespace(x=[1]) %}"
    + DOUBLE_60
    + "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x }}",
    "doubling dictionaries": "{% set n = namespace(x=[1]) %}"
    + DOUBLE_60
    + "{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x | tojson }}",
    "doubling with join": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = [n.x, n.x] | join(n.x) %}{% endfor %}",
    "doubling by replacing": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "doubling by formats": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = '{0}{0}'.format(n.x) %}{% endfor %}",
    "doubling by %": "{% set n = namespace(x='ab') %}"
    + DOUBLE_60
    + "{% set n.x = '%(a)s%(a)s' % {'a': n.x} %}{% endfor %}",
    "one format says a value often": "{% set x = 'a' * 1000000 %}{{ ('{0}' * 100000).format(x) }}",
    "times": "{{ 'a' * 10**10 }}",
    "times a list": "{{ [1] * 10**10 }}",
    "times, turned": "{{ 10**10 * 'a' }}",
    "power": "{{ 10 ** 1000000000 }}",
    "products": "{% set n = namespace(x=10**9) %}"
    + DOUBLE_60
    + "{% set n.x = n.x * n.x %}{% endfor %}",
    "join of a range": "{{ range(100000) | join('a' * 1000000) }}",
    "join of a range, as a method": "{{ ('a' * 1000000).join(['a'] * 100000) }}",
    "join of a generator": "{{ range(90000) | map('string') | join('b' * 100000) }}",
    "printf": "{{ '%1000000000d' % 1 }}",
    "printf, by a name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "printf, by an argument": "{{ '%*d' % (1000000000, 1) }}",
    "printf filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format, by an argument": "{{ '{:{}}'.format(1, 1000000000) }}",
    "centre": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ ('\n' * 100000) | indent(1000000) }}",
    "json indent": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "json separators": "{{ range(1000) | list | tojson(separators=('a' * 1000000, 'b')) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops with output": "{% for i in range(99999) %}"
    "{% for j in range(99999) %}a{% endfor %}{% endfor %}",
    "much static text": "{% for i in range(99999) %}" + "a" * 100_000 + "{% endfor %}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "filters that list": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "long searches": "{% set x = 'a' * 3000000 %}{% for i in range(99999) %}{{ x.find('b') }}"
    "{% endfor %}",
    "nested lists": "{% set n = namespace(x=[]) %}{% for i in range(5000) %}"
    "{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "5,000 nested ifs": "{% if true %}" * 5000 + "{% endif %}" * 5000,
    "5,000 nested loops": "{% for i in [1] %}" * 5000 + "{% endfor %}" * 5000,
    "5,000 brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "5,000 lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "5,000 sums": "{{ " + "+".join("1" * 5000) + " }}",
    "5,000 filters": "{{ 'a'" + "|e" * 5000 + " }}",
    "too long": "a" * (SOURCE_CHARACTERS + 1),
}
