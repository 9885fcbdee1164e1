# SPDX-License-Identifier: Apache-2.0
"""The machinery of a build: stages, who runs them, and who is told.

with open_staging(output) as staging, RichReporter(console) as reporter:
    run_stages(staging, stages, spec, reporter)
"""

from tc_export.runner.reporter import Reporter, RichReporter, SilentReporter
from tc_export.runner.runner import is_up_to_date, run_stages
from tc_export.runner.stage import Stage, StageContext

__all__ = [
    "Reporter",
    "RichReporter",
    "SilentReporter",
    "Stage",
    "StageContext",
    "is_up_to_date",
    "run_stages",
]
