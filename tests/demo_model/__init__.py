# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration model: what it feeds, how it resumes, and what it writes."""
