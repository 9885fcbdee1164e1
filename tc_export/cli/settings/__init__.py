# SPDX-License-Identifier: Apache-2.0
"""Settings of a build: what there is to set, the file that states it, and what counts in the end.

A new setting is a field in `schema.py` and an option of the verb; the file, `tc-export init`, the
help and the check of unknown keys follow from the field.
"""
