# SPDX-License-Identifier: Apache-2.0
"""The stages of a build, one file each: what its result depends on, what it writes, and how.

`stage` in each file makes the `Stage` from the `BuildInputs`; their order is in `pipeline`.
`preflight` is what is refused before any of them runs. A stage imports what it works with in its
body: where all is unchanged, a build ends without loading PyTorch.
"""
