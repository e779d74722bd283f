// Attention to pages as a call of its own; see paged_attention.h.

#include "paged_attention.h"

// writes the new keys and values that are there, then attends if there is an output
extern "C" void paged_attention(const Attention* call, int64_t threads) {
    std::atomic<int64_t> written{0}, taken{0};
    write_all(*call, written);
    if (!call->output) return;
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    attend_all(*call, taken);
}
