"""Echo state networks."""

from . import matrices as matrices
from .population import Population as Population
from .population import RingReservoirs as RingReservoirs
from .reservoir import Reservoir as Reservoir
from .spectrum import spectral_radius as spectral_radius
