"""Echo state networks."""

from __future__ import annotations

from typing import Any

from . import datasets as datasets
from . import matrices as matrices
from . import tasks as tasks
from .classify import Logistic as Logistic
from .classify import SklearnReadout as SklearnReadout
from .ensemble import Ensemble as Ensemble
from .esn import ESN as ESN
from .nvar import NVAR as NVAR
from .online import FORCE as FORCE
from .online import LMS as LMS
from .online import RLS as RLS
from .population import Population as Population
from .population import RingReservoirs as RingReservoirs
from .readout import Readout as Readout
from .reservoir import Reservoir as Reservoir
from .ridge import Ridge as Ridge
from .ridge import RidgeReport as RidgeReport
from .spectrum import spectral_radius as spectral_radius
from .tuning import Tuning as Tuning
from .tuning import tune as tune


def __getattr__(name: str) -> Any:
    """Load the scikit-learn estimators when they are asked for."""
    if name in ("ESNClassifier", "ESNRegressor"):
        from . import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
