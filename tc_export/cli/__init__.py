# SPDX-License-Identifier: Apache-2.0
"""The command line: each verb parses its arguments, calls one function, and prints."""
