"""Admission: what a market takes in, and whether what is published can be believed.

`verify` runs a model and compares it with its specification. `admit` decides by a `Policy` which
specifications may enter a market, with what `suspicions` finds by comparing them with the market's
own. `audit` does both for a market. Nothing here changes a market or a score.
"""

from jaxspec.admission.admit import Admission, admit
from jaxspec.admission.audit import Audit, audit
from jaxspec.admission.policy import Policy
from jaxspec.admission.verify import Verification, verify

__all__ = ["Admission", "Audit", "Policy", "Verification", "admit", "audit", "verify"]
