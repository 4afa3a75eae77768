# shellcheck shell=bash
# Compiler and runtime flags per platform; sourced by the other scripts here. What the caller has already set stands last and so
# wins. None of these change results; remove one by setting it to the other value, e.g. XLA_FLAGS=--xla_...=false.

# Makes the first program of a restarted run start at once: compiled programs are kept in the run's own folder (which may be
# gs://...), so that every machine of the next attempt finds them.
compilation_cache() {
    export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${1%/}/xla_cache}"
}

tpu_flags() {
    local flags=(
        # All-gathers of fsdp-sharded parameters run while the layer before computes, instead of in front of their layer.
        --xla_enable_async_all_gather=true
        --xla_tpu_enable_async_collective_fusion=true
        --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
        # A collective may stretch over several computations, not just its neighbour: our matrix products are short.
        --xla_tpu_enable_async_collective_fusion_multiple_steps=true
        --xla_tpu_overlap_compute_collective_tc=true
        # The gradient sum over the data axis starts with the last layer while the backward pass still runs, for arrays of
        # unlike sizes too (embeddings beside stacked layers).
        --xla_tpu_enable_data_parallel_all_reduce_opt=true
        --xla_tpu_data_parallel_opt_different_sized_ops=true
    )
    export LIBTPU_INIT_ARGS="${flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
}

gpu_flags() {
    local flags=(
        # Collectives are started as early and awaited as late as the data allow.
        --xla_gpu_enable_latency_hiding_scheduler=true
        # Gradients of one layer are tens of megabytes: gathered into messages of 256 MiB they use NVLink better than one by one.
        --xla_gpu_all_reduce_combine_threshold_bytes=268435456
        --xla_gpu_all_gather_combine_threshold_bytes=268435456
        --xla_gpu_reduce_scatter_combine_threshold_bytes=268435456
    )
    export XLA_FLAGS="${flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
    # 0.75 by default; the rest is enough for NCCL and CUDA themselves.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
}
