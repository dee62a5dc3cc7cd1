// AVX-512 with VNNI and BF16: products of bfloat16 pairs and of 8-bit quadruples.
#pragma once

#include "vec_avx512.h"

#define FASTRNN_HAS_DOT 1
#define FASTRNN_EXTENDS avx512
