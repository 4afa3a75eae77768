# shellcheck shell=bash
# Compiler and runtime flags per platform; sourced by the other scripts here. Flags that the caller has set are appended, so
# they override these. None of these changes results. To disable one, set the opposite value, e.g. XLA_FLAGS=--xla_...=false.

# Sets the persistent compilation cache to a folder inside the workdir (which may be gs://...), so that a restarted run reuses
# the compiled programs on every machine.
compilation_cache() {
    export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${1%/}/xla_cache}"
}

tpu_flags() {
    local flags=(
        # Overlaps the all-gathers of fsdp-sharded parameters with the computation of the preceding layer.
        --xla_enable_async_all_gather=true
        --xla_tpu_enable_async_collective_fusion=true
        --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
        # Lets a collective overlap with several computations, because single matrix products here are short.
        --xla_tpu_enable_async_collective_fusion_multiple_steps=true
        --xla_tpu_overlap_compute_collective_tc=true
        # Overlaps the all-reduce of gradients over the data axis with the backward pass, also for arrays of different sizes
        # (embeddings and stacked layers).
        --xla_tpu_enable_data_parallel_all_reduce_opt=true
        --xla_tpu_data_parallel_opt_different_sized_ops=true
    )
    export LIBTPU_INIT_ARGS="${flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
}

gpu_flags() {
    local flags=(
        # Schedules collectives to overlap with computation.
        --xla_gpu_enable_latency_hiding_scheduler=true
        # Combines the collectives of several layers into messages of 256 MiB, which use more of NVLink's bandwidth.
        --xla_gpu_all_reduce_combine_threshold_bytes=268435456
        --xla_gpu_all_gather_combine_threshold_bytes=268435456
        --xla_gpu_reduce_scatter_combine_threshold_bytes=268435456
    )
    export XLA_FLAGS="${flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
    # JAX's default is 0.75. The remaining 10% suffice for NCCL and CUDA.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
}
