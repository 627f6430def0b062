"""Which option names does onnxruntime know? It ignores an unknown one silently; here that is an error.

Names of session settings are those of `onnxruntime_session_options_config_keys.h`; of providers, the tables in the
documentation of the CUDA and TensorRT execution providers (https://onnxruntime.ai/docs/execution-providers/).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from l0runtime.errors import OptionError

SESSION_SETTINGS = frozenset(
    {
        "session.allow_released_opsets_only",
        "session.debug_layout_transformation",
        "session.disable_aot_function_inlining",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.load_model_format",
        "session.model_external_initializers_file_folder_path",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.save_model_format",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
        "session.use_memory_mapped_ort_model",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "optimization.minimal_build_optimizations",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "ep.context_embed_mode",
        "ep.context_enable",
        "ep.context_file_path",
    }
)

_PROVIDER_OPTIONS: dict[str, frozenset[str]] = {
    "CPUExecutionProvider": frozenset(),
    "CUDAExecutionProvider": frozenset(
        {
            "arena_extend_strategy",
            "cudnn_conv1d_pad_to_nc1d",
            "cudnn_conv_algo_search",
            "cudnn_conv_use_max_workspace",
            "do_copy_in_default_stream",
            "enable_cuda_graph",
            "enable_skip_layer_norm_strict_mode",
            "fuse_conv_bias",
            "gpu_mem_limit",
            "prefer_nhwc",
            "sdpa_kernel",
            "tunable_op_enable",
            "tunable_op_max_tuning_duration_ms",
            "tunable_op_tuning_enable",
            "use_ep_level_unified_stream",
            "use_tf32",
            "user_compute_stream",
        }
    ),
    "TensorrtExecutionProvider": frozenset(
        {
            "trt_auxiliary_streams",
            "trt_bf16_enable",
            "trt_build_heuristics_enable",
            "trt_builder_optimization_level",
            "trt_context_memory_sharing_enable",
            "trt_cuda_graph_enable",
            "trt_detailed_build_log",
            "trt_dla_core",
            "trt_dla_enable",
            "trt_dump_ep_context_model",
            "trt_dump_subgraphs",
            "trt_engine_cache_enable",
            "trt_engine_cache_path",
            "trt_engine_cache_prefix",
            "trt_engine_hw_compatible",
            "trt_ep_context_embed_mode",
            "trt_ep_context_file_path",
            "trt_extra_plugin_lib_paths",
            "trt_force_sequential_engine_build",
            "trt_force_timing_cache",
            "trt_fp16_enable",
            "trt_int8_calibration_table_name",
            "trt_int8_enable",
            "trt_int8_use_native_calibration_table",
            "trt_layer_norm_fp32_fallback",
            "trt_max_partition_iterations",
            "trt_max_workspace_size",
            "trt_min_subgraph_size",
            "trt_op_types_to_exclude",
            "trt_profile_max_shapes",
            "trt_profile_min_shapes",
            "trt_profile_opt_shapes",
            "trt_sparsity_enable",
            "trt_tactic_sources",
            "trt_timing_cache_enable",
            "trt_timing_cache_path",
            "trt_weight_stripped_engine_enable",
            "user_compute_stream",
        }
    ),
}


def known_provider_options(provider: str) -> frozenset[str]:
    """The option names of a provider; `device_id` is no option here because the device name carries it."""
    return _PROVIDER_OPTIONS[provider]


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an unknown name.

    Raises:
        OptionError: names the nearest known one.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known) or 'none'}."
            raise OptionError(f"{what} '{name}': unknown; {hint}")
