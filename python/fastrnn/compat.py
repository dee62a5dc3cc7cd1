"""The modules of fastrnn for code that asks ``isinstance(module, torch.nn.LSTM)``.

Each class is both fastrnn's and torch's: it computes with fastrnn's kernels, and ``isinstance``
finds torch's class too. Two things follow: ``torch.compile`` leaves ``RNN``, ``LSTM`` and ``GRU``
to eager mode (a break in the graph), as it does torch's own, and libraries that treat
``torch.nn.LSTM`` specially treat these so.
"""

from __future__ import annotations

import torch

from .cells import elman, gru, lstm

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(elman.RNN, torch.nn.RNN):
    """Run Elman layers: :class:`fastrnn.RNN` that is a :class:`torch.nn.RNN` too."""


class LSTM(lstm.LSTM, torch.nn.LSTM):
    """Run LSTM layers: :class:`fastrnn.LSTM` that is a :class:`torch.nn.LSTM` too."""


class GRU(gru.GRU, torch.nn.GRU):
    """Run GRU layers: :class:`fastrnn.GRU` that is a :class:`torch.nn.GRU` too."""


class RNNCell(elman.RNNCell, torch.nn.RNNCell):
    """Do one Elman step: :class:`fastrnn.RNNCell` that is a :class:`torch.nn.RNNCell` too."""


class LSTMCell(lstm.LSTMCell, torch.nn.LSTMCell):
    """Do one LSTM step: :class:`fastrnn.LSTMCell` that is a :class:`torch.nn.LSTMCell` too."""


class GRUCell(gru.GRUCell, torch.nn.GRUCell):
    """Do one GRU step: :class:`fastrnn.GRUCell` that is a :class:`torch.nn.GRUCell` too."""
