// AVX-512 with BF16 and VNNI, and matrix products in the tile registers of AMX.
#pragma once

#include "vec_avx512_bf16.h"

#define FASTRNN_HAS_TILES 1
#undef FASTRNN_EXTENDS
#define FASTRNN_EXTENDS avx512_bf16
