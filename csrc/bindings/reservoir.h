// Adds the reservoir functions to fastrnn._core.
#pragma once

#include <pybind11/pybind11.h>

void add_reservoir(pybind11::module_& m);
