# SPDX-License-Identifier: Apache-2.0
#
# Compares one output of trtexec's --exportOutput with golden values.
#
#   tr -s ' ,' '\n\n' < output.json | awk -f compare.awk -v name=… -v expected=FILE -v tolerance=…
#
# Input: the JSON, a token a line. `expected`: numbers, as od prints them. Memory does not grow with
# the outputs. Exit code 0: within the tolerance; 1: not. trtexec prints six digits: what that
# rounds away is no error of the engine's.

function magnitude(x) { return x < 0 ? -x : x }

function next_expected() {
  while (field >= fields) {
    if ((getline line < expected) <= 0) return "none"
    fields = split(line, numbers, " ")
    field = 0
  }
  return numbers[++field]
}

function note(error, rounding) {
  if (error - rounding > tolerance) failed = 1
  if (count == 0 || error - rounding > worst - slack) {
    worst = error; slack = rounding; at = count; found = value; wanted = golden
  }
}

BEGIN {
  quote = sprintf("%c", 34); infinity = 1e300
  count = 0; missing = 0; failed = 0
  tolerance += 0
}

inside && $0 == "]" { inside = 0; done = 1; next }

inside {
  value = $0; golden = next_expected()
  if (golden == "none") { missing = 1; note(infinity, 0) }
  else if (value !~ /^[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$/) note(infinity, 0)  # nan, inf
  else note(magnitude(value - golden), 0.000005 * magnitude(value))
  count++
  next
}

$0 == quote "name" quote { expects = "name"; next }
$0 == quote "values" quote { expects = "values"; next }
$0 == ":" || $0 == "" { next }
expects == "name" { current = $0; expects = ""; next }
expects == "values" && $0 == "[" { inside = (current == quote name quote); expects = ""; next }

END {
  if (!done) { print "  trtexec wrote no values of " name; exit 1 }
  if (missing || next_expected() != "none") {
    print "  " name " has " count " values, and the golden data another number"
    exit 1
  }
  printf "  %s: %d values, largest error %.3g, allowed %.3g", name, count, worst, tolerance
  if (failed) {
    printf "\n  value %d is %s, and should be %s\n", at, found, wanted
    exit 1
  }
  printf "\n"
}
