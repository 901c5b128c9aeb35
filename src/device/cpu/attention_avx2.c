/* device/cpu/attention_avx2.c - attention's tiles in AVX2. Its softmax is in kernels_avx2.c. */
#include "device/cpu/attention_tiles.h"
