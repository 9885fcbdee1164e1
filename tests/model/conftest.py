# SPDX-License-Identifier: Apache-2.0
"""How long an example takes says how busy the machine is, and nothing of the code: no deadline."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no-deadline")
