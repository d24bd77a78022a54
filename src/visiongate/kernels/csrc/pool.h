// A small thread pool for short, frequent loops, and memory that each thread keeps for its next call.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace visiongate {

// Calls body(context, item) for every item in [0, num_items). Each thread starts on its own run of
// neighbouring items, so that weights are read as streams, and then helps the others.
void parallel_for(int64_t num_items, void (*body)(void* context, int64_t item), void* context);

void set_num_threads(int count);
int num_threads();

// Memory of this thread, 64-byte aligned, kept and grown between calls; one block a slot.
enum ScratchSlot {
  kActivations, kActivationScales, kSums, kRow, kAttention, kDecoder, kNumScratchSlots
};
void* scratch(ScratchSlot slot, size_t num_bytes);

}  // namespace visiongate
