/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-1-3 (Aumasson, Bernstein) over blocks that already hold the length in their last byte. */
#ifndef SHERD_SIPHASH_H
#define SHERD_SIPHASH_H

#include <linux/types.h>

#include "steer.h"

#define ROTATE_LEFT(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

#define SIP_ROUND(v0, v1, v2, v3)   \
	do {                        \
		v0 += v1;           \
		v1 = ROTATE_LEFT(v1, 13); \
		v1 ^= v0;           \
		v0 = ROTATE_LEFT(v0, 32); \
		v2 += v3;           \
		v3 = ROTATE_LEFT(v3, 16); \
		v3 ^= v2;           \
		v0 += v3;           \
		v3 = ROTATE_LEFT(v3, 21); \
		v3 ^= v0;           \
		v2 += v1;           \
		v1 = ROTATE_LEFT(v1, 17); \
		v1 ^= v2;           \
		v2 = ROTATE_LEFT(v2, 32); \
	} while (0)

static __always_inline __u64 siphash13(const struct seed *seed, const __u64 *blocks, int count)
{
	__u64 v0 = seed->key[0] ^ 0x736f6d6570736575ull;
	__u64 v1 = seed->key[1] ^ 0x646f72616e646f6dull;
	__u64 v2 = seed->key[0] ^ 0x6c7967656e657261ull;
	__u64 v3 = seed->key[1] ^ 0x7465646279746573ull;

#pragma unroll
	for (int i = 0; i < count; i++) {
		v3 ^= blocks[i];
		SIP_ROUND(v0, v1, v2, v3);
		v0 ^= blocks[i];
	}
	v2 ^= 0xff;
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif
