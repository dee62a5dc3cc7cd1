"""Echo state networks."""

from .reservoir import Reservoir as Reservoir
