"""How far a kernel may be from the float64 reference, and why: one row per kind of rule, for one step.

Every step starts from the numbers that the kernels have stored, so that errors do not add up and any number of steps is
held to the same tolerance. The rounding of a storage format is no error (`rlx_gpu.parity.intervals`). Every element has
to pass, and NaN never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.state import STEP
from .storages import Formats


@dataclass(frozen=True)
class Tolerance:
    """What one array may be off by."""

    relative: float  # of the largest magnitude in the array, before or after the step
    of_change: float  # of the parameter's largest change in the step, for parameters only
    reason: str  # why not less
    slots: Mapping[str, float] = field(default_factory=dict)  # `relative` of the slots that need more
    warm: int = 0  # steps that the reference makes beforehand, so that both begin with the state that they leave

    def __str__(self) -> str:
        change = f", and {self.of_change:.1e} of a parameter's largest change" if self.of_change else ""
        slots = "".join(f", {share:.0e} in {slot}" for slot, share in self.slots.items())
        return f"{self.relative:.0e} of the largest magnitude{slots}{change}: {self.reason}"

    def allowed(self, slot: str, largest: float, change: float) -> float:
        """How far an element of an array of this largest magnitude and largest change may be off; counts are exact."""
        if slot == STEP:
            return 0.0
        if slot == "param":
            return self.relative * largest + self.of_change * change
        return self.slots.get(slot, self.relative) * largest


ONE_STEP = Tolerance(
    relative=1e-6, of_change=0.0, reason="about fifteen float32 operations, each off by at most 2^-24 = 6e-8"
)
READ_BACK = Tolerance(
    relative=5e-7,
    of_change=1.5 * 2.0**-8,
    reason="the update comes of moments that were stored in bfloat16 and read back, each off by 2^-8: one and a half of"
    " these in m/√v, three halves in g/√(R·C/mean R), and in a momentum before it is made orthogonal",
)
WARM = 24  # after which even the longer covariance of a 9 x 136 matrix has full rank
SOAP = Tolerance(
    relative=5e-7,
    of_change=1e-3,
    reason="float32 factorisations: a basis is off by 6e-8 times the condition of its covariance, some thousands",
    slots={"left_basis": 5e-3, "right_basis": 5e-3, "exp_avg": 1e-3, "exp_avg_sq": 1e-3},
    warm=WARM,
)
SOAP_READ_BACK = replace(
    SOAP,
    of_change=READ_BACK.of_change,
    reason="as with float32 state, and the moments are stored in bfloat16, off by 2^-9, before they are turned as well"
    " as after",
    slots={**SOAP.slots, "exp_avg": 2.0**-7, "exp_avg_sq": 2.0**-7},
)
KRON = Tolerance(
    relative=1e-5,
    of_change=1e-3,
    reason="long chains of float32 matrix products, normalised by bounds that amplify what they are off by",
    warm=WARM,
)
KRON_READ_BACK = replace(
    KRON,
    of_change=2.0**-6,
    reason="the update is the product of a momentum and four factors, stored in bfloat16 and read back, off by 2^-9",
    slots={f"{side}{slot}": 2.0**-8 for slot in ("factor", "lipschitz") for side in ("", "left_", "right_")},
)
MUON = replace(
    ONE_STEP, of_change=1e-5, reason="some tens of float32 matrix products, which stretch small singular values"
)
# By the kind of the rule (`kind`) and the format of the state.
TOLERANCES = {
    "one launch": {"float32": ONE_STEP, "bfloat16": ONE_STEP},
    "several launches": {"float32": ONE_STEP, "bfloat16": READ_BACK},
    "muon": {"float32": MUON, "bfloat16": READ_BACK},
    "soap": {"float32": SOAP, "bfloat16": SOAP_READ_BACK},
    "kron": {"float32": KRON, "bfloat16": KRON_READ_BACK},
}
# Where the reference itself jumps, by more than JUMP of the array's largest magnitude as the gradient moves by NUDGE of
# itself, an element may lie anywhere within the jump: Lion's sign of a sum that is 0 but for float32 rounding, say.
JUMP, NUDGE = 1e-3, 2.0**-20


def tolerance(spec: Any, formats: Formats) -> Tolerance:
    """The row of a rule (`rlx_gpu.kernels.spec`)."""
    return TOLERANCES[kind(spec)][formats.state]


def kind(spec: Any) -> str:
    """The routine of a rule for whole matrices; of others, whether a launch reads what an earlier one has stored."""
    if hasattr(spec, "routine"):
        return str(spec.routine)
    early = spec.slots if not hasattr(spec, "passes") else {slot for one in spec.passes[:-1] for slot in one.writes}
    return "several launches" if set(early) & set(spec.slots) else "one launch"
