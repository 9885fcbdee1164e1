# SPDX-License-Identifier: Apache-2.0
"""What tests of the runner have, tests of the bundles that it fills have too."""

from tests.runner.conftest import _without_waiting_for_the_disk, toy

__all__ = ["_without_waiting_for_the_disk", "toy"]
