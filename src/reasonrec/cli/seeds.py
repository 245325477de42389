"""The seed that commands take."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]
"""0 to 2^32 - 1: what numpy, torch and transformers all accept."""
