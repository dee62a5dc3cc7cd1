"""Echo state networks."""

from . import matrices as matrices
from .esn import ESN as ESN
from .population import Population as Population
from .population import RingReservoirs as RingReservoirs
from .readout import Readout as Readout
from .readout import Ridge as Ridge
from .reservoir import Reservoir as Reservoir
from .spectrum import spectral_radius as spectral_radius
