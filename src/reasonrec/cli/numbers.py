"""Numbers that commands take: outside their range is bad usage, said before any work."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]
"""0 to 2^32 - 1: what numpy, torch and transformers all accept."""
Count = Annotated[int, Parameter(validator=Number(gte=0))]
"""0 or more."""
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
"""1 or more."""
