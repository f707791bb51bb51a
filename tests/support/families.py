"""Configs of the architectures that people serve, with the shapes of published checkpoints, cut to the keys that decide about the KV cache.

Those of tests/unit/configs are whole; here are more, written down compactly: a line is a config.json.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from support import modelfolder

Config = Mapping[str, Any]


def text(architecture: str, kind: str, hidden: int, layers: int, heads: int, kv: int | None, width: int, vocabulary: int, longest: int,
         **more: Any) -> dict[str, Any]:
    """A plain decoder's config.json; `kv` None: it does not say."""
    return {"architectures": [architecture], "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            **({} if kv is None else {"num_key_value_heads": kv}), "intermediate_size": width, "vocab_size": vocabulary,
            "max_position_embeddings": longest, **more}


def every(step: int, layers: int, other: str, own: str = "full_attention") -> list[str]:
    """Each `step`-th layer is `own`."""
    return [own if (layer + 1) % step == 0 else other for layer in range(layers)]


def nested(architecture: str, kind: str, text_config: Config, key: str = "text_config", **more: Any) -> dict[str, Any]:
    inner = {name: value for name, value in text_config.items() if name != "architectures"}
    return {"architectures": [architecture], "model_type": kind, key: inner, **more}


_DELTA = {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}
_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 5120, "patch_size": 16,
           "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304, "deepstack_visual_indexes": []}
_QWEN3_6 = text("", "qwen3_5_text", 5120, 64, 24, 4, 17408, 248_320, 262_144, head_dim=256, linear_num_value_heads=48, mamba_ssm_dtype="float32",
                layer_types=every(4, 64, "linear_attention"), **_DELTA)
_GRANITE = {"mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_head": 64, "position_embedding_type": "nope",
            "normalization_function": "rmsnorm"}
_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

MORE: dict[str, Config] = {
    # hybrids: attention beside layers with a state
    "qwen3-next-80b": text("Qwen3NextForCausalLM", "qwen3_next", 2048, 48, 16, 2, 5120, 151_936, 262_144, head_dim=256, num_experts=16,
                           num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, linear_num_value_heads=32,
                           full_attention_interval=4, **_DELTA),
    "qwen3.6-27b": nested("Qwen3_5ForConditionalGeneration", "qwen3_5", _QWEN3_6, vision_config=_VISION),
    "qwen3.6-27b-bf16-state": nested("Qwen3_5ForConditionalGeneration", "qwen3_5",
                                     {key: value for key, value in _QWEN3_6.items() if key != "mamba_ssm_dtype"}, vision_config=_VISION),
    "qwen3.5-35b-a3b": nested("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", text(
        "", "qwen3_5_moe_text", 2048, 40, 16, 2, 512, 248_320, 262_144, head_dim=256, num_experts=16, num_experts_per_tok=8,
        moe_intermediate_size=512, shared_expert_intermediate_size=512, linear_num_value_heads=32, layer_types=every(4, 40, "linear_attention"),
        mamba_ssm_dtype="float32", **_DELTA), vision_config=_VISION | {"out_hidden_size": 2048}),
    "kimi-linear-48b": text("KimiLinearForCausalLM", "kimi_linear", 2304, 27, 32, 32, 9216, 163_840, 1_048_576, head_dim=72, q_lora_rank=None,
                            num_experts=16, num_experts_per_token=8, num_shared_experts=1, moe_intermediate_size=1024, first_k_dense_replace=1,
                            moe_layer_freq=1, mla_use_nope=True, linear_attn_config={
                                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": [n for n in range(1, 27) if n % 4],
                                "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}, **_LATENT),
    "granite-4.0-h-small": text("GraniteMoeHybridForCausalLM", "granitemoehybrid", 4096, 40, 32, 8, 768, 100_352, 131_072, num_local_experts=8,
                                num_experts_per_tok=2, shared_intermediate_size=1536, mamba_n_heads=128,
                                layer_types=["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)], **_GRANITE),
    "granite-4.0-micro": text("GraniteMoeHybridForCausalLM", "granitemoehybrid", 2560, 40, 40, 8, 8192, 100_352, 131_072, num_local_experts=0,
                              num_experts_per_tok=0, shared_intermediate_size=8192, mamba_n_heads=80, layer_types=["attention"] * 40, **_GRANITE),
    "jamba-mini": text("JambaForCausalLM", "jamba", 4096, 32, 32, 8, 14336, 65_536, 262_144, attn_layer_period=8, attn_layer_offset=4,
                       expert_layer_period=2, expert_layer_offset=1, num_experts=4, num_experts_per_tok=2, mamba_d_state=16, mamba_d_conv=4,
                       mamba_expand=2, mamba_dt_rank=256),
    "lfm2-1.2b": text("Lfm2ForCausalLM", "lfm2", 2048, 16, 32, 8, 12288, 65_536, 128_000, block_dim=2048, block_ff_dim=12288, block_multiple_of=256,
                      block_auto_adjust_ff_dim=True, conv_L_cache=3, conv_dim=2048, full_attn_idxs=[2, 5, 8, 10, 12, 14]),
    "lfm2-8b-a1b": text("Lfm2MoeForCausalLM", "lfm2_moe", 2048, 24, 32, 8, 7168, 65_536, 128_000, num_experts=8, num_experts_per_tok=4,
                        moe_intermediate_size=1792, num_dense_layers=2, conv_L_cache=3,
                        layer_types=["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)]),
    "nemotron-h-8b": text("NemotronHForCausalLM", "nemotron_h", 4096, 52, 32, 8, 21504, 131_072, 8192, attention_head_dim=128, head_dim=128,
                          mamba_num_heads=128, mamba_head_dim=64, n_groups=8, ssm_state_size=128, conv_kernel=4, expand=2,
                          hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"),
    "falcon-h1-7b": text("FalconH1ForCausalLM", "falcon_h1", 3072, 44, 12, 2, 12288, 130_049, 262_144, head_dim=128, mamba_d_ssm=3072,
                         mamba_n_heads=24, mamba_d_head=128, mamba_n_groups=1, mamba_d_state=256, mamba_d_conv=4, mamba_expand=2),
    "zamba2-7b": text("Zamba2ForCausalLM", "zamba2", 3584, 81, 32, 32, 14336, 32_000, 4096, mamba_d_state=64, mamba_d_conv=4, mamba_expand=2,
                      mamba_ngroups=2, n_mamba_heads=112, mamba_headdim=64, num_mem_blocks=2, attention_hidden_size=7168, attention_head_dim=224,
                      adapter_rank=128, use_shared_attention_adapter=False, use_mem_rope=True,
                      layers_block_type=["hybrid" if layer in (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77) else "mamba"
                                         for layer in range(81)]),
    "mamba2-1.3b": {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 2048, "num_hidden_layers": 48, "state_size": 128,
                    "num_heads": 64, "head_dim": 64, "n_groups": 1, "conv_kernel": 4, "expand": 2, "vocab_size": 50_288},
    "falcon-mamba-7b": {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64,
                        "state_size": 16, "intermediate_size": 8192, "conv_kernel": 4, "expand": 2, "vocab_size": 65_024, "time_step_rank": 256},
    # one latent vector, or a config that only looks like it
    "minicpm3-4b": text("MiniCPM3ForCausalLM", "minicpm3", 2560, 62, 40, 40, 6400, 73_448, 32_768, q_lora_rank=768, kv_lora_rank=256,
                        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64),
    "deepseek-ocr": nested("DeepseekOCRForCausalLM", "deepseek_vl_v2", text(
        "", "deepseek_v2", 1280, 12, 10, 10, 6848, 129_280, 8192, kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0,
        v_head_dim=0, use_mla=False, moe_intermediate_size=896, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=6,
        first_k_dense_replace=1, topk_method="greedy"), key="language_config", vision_config={"model_type": "vision"},
        projector_config={"input_dim": 2048, "n_embed": 1280, "projector_type": "linear"}),
    "glm-4.7-flash": text("Glm4MoeLiteForCausalLM", "glm4_moe_lite", 2048, 47, 20, 20, 10240, 154_880, 202_752, q_lora_rank=768, kv_lora_rank=512,
                          qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256, n_routed_experts=8, num_experts_per_tok=4,
                          n_shared_experts=1, moe_intermediate_size=1536, first_k_dense_replace=1, topk_method="noaux_tc"),
    "deepseek-v3.2": text("DeepseekV32ForCausalLM", "deepseek_v32", 7168, 3, 128, 128, 18432, 129_280, 163_840, q_lora_rank=1536, n_routed_experts=8,
                          num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1, first_k_dense_replace=3, index_topk=2048,
                          index_head_dim=128, index_n_heads=64, n_group=8, topk_group=4, **_LATENT),
    "longcat-flash": {"architectures": ["LongcatFlashForCausalLM"], "model_type": "longcat_flash", "hidden_size": 6144, "num_layers": 4,
                      "num_attention_heads": 64, "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048, "n_routed_experts": 8,
                      "zero_expert_num": 4, "moe_topk": 4, "q_lora_rank": 1536, "vocab_size": 131_072, "max_position_embeddings": 131_072,
                      "zero_expert_type": "identity", "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "routed_scaling_factor": 6.0,
                      "router_bias": False, "attention_method": "MLA", **_LATENT},
    # spellings and counts of KV heads
    "falcon-7b": {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
                  "num_attention_heads": 71, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "bias": False,
                  "alibi": False, "vocab_size": 65_024},
    "falcon-40b": {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60,
                   "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True, "parallel_attn": True, "bias": False,
                   "alibi": False, "vocab_size": 65_024},
    "starcoder": {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_embd": 6144, "n_layer": 40, "n_head": 48,
                  "n_inner": 24576, "n_positions": 8192, "multi_query": True, "vocab_size": 49_152},
    "chatglm3-6b": {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32,
                    "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128, "ffn_hidden_size": 13696,
                    "padded_vocab_size": 65_024, "seq_length": 8192, "rmsnorm": True, "add_qkv_bias": True, "add_bias_linear": False,
                    "apply_residual_connection_post_layernorm": False, "post_layer_norm": True, "layernorm_epsilon": 1e-5, "original_rope": True},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
             "vocab_size": 50_257},
    "gpt-j-6b": {"architectures": ["GPTJForCausalLM"], "model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048,
                 "rotary_dim": 64, "vocab_size": 50_400},
    "pythia-6.9b": text("GPTNeoXForCausalLM", "gpt_neox", 4096, 32, 32, None, 16384, 50_432, 2048, rotary_pct=0.25),
    "opt-6.7b": {"architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "ffn_dim": 16384, "vocab_size": 50_272, "max_position_embeddings": 2048, "word_embed_proj_dim": 4096},
    "bloom-7b": {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32,
                 "vocab_size": 250_880, "seq_length": 2048},
    "dbrx": {"architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "d_model": 6144, "n_layers": 4, "n_heads": 48, "max_seq_len": 32_768,
             "vocab_size": 100_352, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500_000},
             "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 4, "moe_top_k": 2}},
    "phi-2": text("PhiForCausalLM", "phi", 2560, 32, 32, 32, 10240, 51_200, 2048, partial_rotary_factor=0.4),
    "stablelm-2-1.6b": text("StableLmForCausalLM", "stablelm", 2048, 24, 32, 32, 5632, 100_352, 4096, partial_rotary_factor=0.25, use_qkv_bias=True),
    "starcoder2-7b": text("Starcoder2ForCausalLM", "starcoder2", 4608, 32, 36, 4, 18432, 49_152, 16_384, sliding_window=4096, use_bias=True),
    "internlm2-7b": text("InternLM2ForCausalLM", "internlm2", 4096, 32, 32, 8, 14336, 92_544, 32_768, bias=False, hidden_act="silu",
                         rms_norm_eps=1e-5, rope_theta=1_000_000),
    "baichuan2-7b": text("BaichuanForCausalLM", "baichuan", 4096, 32, 32, None, 11008, 125_696, 4096, hidden_act="silu", rms_norm_eps=1e-6),
    # windows
    "mistral-small-24b": text("MistralForCausalLM", "mistral", 5120, 40, 32, 8, 32768, 131_072, 32_768, head_dim=128, sliding_window=None),
    "command-r7b": text("Cohere2ForCausalLM", "cohere2", 4096, 32, 32, 8, 14336, 256_000, 132_096, head_dim=128, sliding_window=4096,
                        sliding_window_pattern=4),
    "command-r-35b": text("CohereForCausalLM", "cohere", 8192, 4, 64, 64, 22528, 256_000, 8192, model_max_length=131_072),
    "gemma-3-27b": nested("Gemma3ForConditionalGeneration", "gemma3", {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32, "num_hidden_layers": 62,
        "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False}, mm_tokens_per_image=256),
    "gemma-3n-e4b": nested("Gemma3nForConditionalGeneration", "gemma3n", {
        "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_hidden_layers": 35,
        "num_key_value_heads": 2, "head_dim": 256, "num_kv_shared_layers": 15, "sliding_window": 512, "vocab_size": 262_400,
        "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256, "laurel_rank": 64, "max_position_embeddings": 32_768,
        "layer_types": every(5, 35, "sliding_attention")}),
    "gemma-3n-e4b-text": {
        "architectures": ["Gemma3nForCausalLM"], "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": 16384,
        "num_attention_heads": 8, "num_hidden_layers": 35, "num_key_value_heads": 2, "head_dim": 256, "num_kv_shared_layers": 15,
        "sliding_window": 512, "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256, "laurel_rank": 64,
        "max_position_embeddings": 32_768, "layer_types": every(5, 35, "sliding_attention")},
    "gemma-4-31b": text("Gemma4ForCausalLM", "gemma4_text", 5376, 60, 32, 16, 21504, 262_144, 262_144, head_dim=256, global_head_dim=512,
                        num_global_key_value_heads=4, attention_k_eq_v=True, sliding_window=1024, layer_types=every(6, 60, "sliding_attention"),
                        hidden_size_per_layer_input=0, num_kv_shared_layers=0),
    "gemma-4-e4b": text("Gemma4ForCausalLM", "gemma4_text", 2560, 42, 8, 2, 10240, 262_144, 131_072, head_dim=256, global_head_dim=512,
                        num_kv_shared_layers=18, sliding_window=512, layer_types=every(6, 42, "sliding_attention"), hidden_size_per_layer_input=256,
                        vocab_size_per_layer_input=262_144),
    "olmo-3-7b": text("Olmo3ForCausalLM", "olmo3", 4096, 32, 32, 32, 11008, 100_278, 65_536, sliding_window=4096,
                      layer_types=every(4, 32, "sliding_attention")),
    "exaone-4-32b": text("Exaone4ForCausalLM", "exaone4", 5120, 64, 40, 8, 27392, 102_400, 131_072, head_dim=128, sliding_window=4096,
                         sliding_window_pattern="LLLG",
                         layer_types=every(4, 64, "sliding_attention")),
    "qwen2.5-1m": text("Qwen2ForCausalLM", "qwen2", 3584, 28, 28, 4, 18944, 152_064, 1_010_000, use_sliding_window=False, sliding_window=32_768,
                       max_window_layers=28),
    "mimo-7b": text("MiMoForCausalLM", "mimo", 4096, 36, 32, 8, 11008, 151_680, 32_768, head_dim=128, num_nextn_predict_layers=1,
                    use_sliding_window=False, attention_bias=True),
    "llama-4-scout": nested("Llama4ForConditionalGeneration", "llama4", text(
        "", "llama4_text", 5120, 48, 40, 8, 8192, 202_048, 10_485_760, head_dim=128, intermediate_size_mlp=16384, num_local_experts=2,
        num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=8192, no_rope_layers=[int((n + 1) % 4 != 0) for n in range(48)]),
        vision_config={"hidden_size": 1408, "intermediate_size": 5632, "num_hidden_layers": 2, "num_attention_heads": 16, "image_size": 336,
                       "patch_size": 14, "vision_output_dim": 4096, "projector_input_dim": 4096, "projector_output_dim": 4096}),
    "smollm3-3b": text("SmolLM3ForCausalLM", "smollm3", 2048, 36, 16, 4, 11008, 128_256, 65_536, no_rope_layer_interval=4),
    "step-3.5-flash": text("Step3p5ForCausalLM", "step3p5", 4096, 8, 64, None, 11264, 128_896, 262_144, num_attention_groups=8, head_dim=128,
                           sliding_window=512, layer_types=["full_attention", *["sliding_attention"] * 3] * 2, moe_num_experts=8, moe_top_k=8,
                           moe_intermediate_size=1280, share_expert_dim=1280, moe_layers_enum="3,4,5,6,7",
                           attention_other_setting={"attention_type": "sliding_attention", "num_attention_heads": 96, "num_attention_groups": 8,
                                                    "head_dim": 128, "true_head_dim": 128}, max_seq_len=262_144),
    # mixtures of experts, and plain decoders of other names
    "glm-4-9b": text("Glm4ForCausalLM", "glm4", 4096, 40, 32, 2, 13696, 151_552, 32_768, head_dim=128, attention_bias=True,
                     partial_rotary_factor=0.5),
    "glm-4.5-air": text("Glm4MoeForCausalLM", "glm4_moe", 4096, 46, 96, 8, 10944, 151_552, 131_072, head_dim=128, n_routed_experts=4,
                        num_experts_per_tok=2, moe_intermediate_size=1408, n_shared_experts=1, first_k_dense_replace=1, partial_rotary_factor=0.5),
    "minimax-m2": text("MiniMaxM2ForCausalLM", "minimax_m2", 3072, 62, 48, 8, 1536, 200_064, 196_608, head_dim=128, num_local_experts=4,
                       num_experts_per_tok=2, rotary_dim=64, use_qk_norm=True, scoring_func="sigmoid", use_routing_bias=True),
    "seed-oss-36b": text("SeedOssForCausalLM", "seed_oss", 5120, 64, 80, 8, 27648, 155_136, 524_288, head_dim=128, attention_bias=True),
    "ernie-4.5-21b": text("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", 2560, 28, 20, 4, 12288, 103_424, 131_072, moe_num_experts=4, moe_k=2,
                          moe_intermediate_size=1536, moe_layer_start_index=1, moe_layer_end_index=27, moe_layer_interval=1,
                          moe_num_shared_experts=2),
    "olmoe-7b": text("OlmoeForCausalLM", "olmoe", 2048, 16, 16, 16, 1024, 50_304, 4096, num_experts=8, num_experts_per_tok=2),
    "phi-3.5-moe": text("PhiMoEForCausalLM", "phimoe", 4096, 32, 32, 8, 6400, 32_064, 131_072, num_local_experts=2, num_experts_per_tok=2,
                        attention_bias=True, lm_head_bias=True, sliding_window=131_072),
    "hunyuan-7b": text("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", 4096, 32, 32, 8, 14336, 128_167, 32_768, head_dim=128, use_qk_norm=True,
                       attention_head_dim=128),
    "nemotron-mini-4b": text("NemotronForCausalLM", "nemotron", 3072, 32, 24, 8, 9216, 256_000, 4096, head_dim=128, hidden_act="relu2"),
    "apertus-8b": text("ApertusForCausalLM", "apertus", 4096, 32, 32, 8, 21504, 131_072, 65_536, hidden_act="xielu"),
    # nested configs, towers
    "llava-1.5-7b": {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "image_size": 336, "patch_size": 14, "vocab_size": 32_000, "projection_dim": 768}, "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32_064}},
    "qwen2-vl-7b": text("Qwen2VLForConditionalGeneration", "qwen2_vl", 3584, 28, 28, 4, 18944, 152_064, 32_768, use_sliding_window=False,
                        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}, vision_config={"depth": 2, "hidden_size": 3584}),
    "qwen2.5-omni-7b": {"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "thinker_config": {
        "model_type": "qwen2_5_omni_thinker", "text_config": text("", "qwen2_5_omni_text", 3584, 28, 28, 4, 18944, 152_064, 32_768,
                                                                  use_sliding_window=False, sliding_window=32_768,
                                                                  rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}),
        "audio_config": {"encoder_layers": 2}, "vision_config": {"depth": 2, "hidden_size": 1280, "out_hidden_size": 3584}}},
    "qwen3-vl-8b": nested("Qwen3VLForConditionalGeneration", "qwen3_vl", text(
        "", "qwen3_vl_text", 4096, 36, 32, 8, 12288, 151_936, 262_144, head_dim=128),
                          vision_config=_VISION | {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}),
    "mistral-small-3.1": nested("Mistral3ForConditionalGeneration", "mistral3", text(
        "", "mistral", 5120, 40, 32, 8, 32768, 131_072, 131_072, head_dim=128, sliding_window=None), vision_config={
            "model_type": "pixtral", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4096,
            "image_size": 1540, "patch_size": 14, "head_dim": 64}, spatial_merge_size=2, image_token_index=10, vision_feature_layer=-1),
    # no KV cache: every token sees every other one at once
    "bge-m3": text("XLMRobertaModel", "xlm-roberta", 1024, 24, 16, None, 4096, 250_002, 8194, pad_token_id=1, type_vocab_size=1,
                   position_embedding_type="absolute"),
    "bert-base": text("BertModel", "bert", 768, 12, 12, None, 3072, 30_522, 512),
    "modernbert-base": text("ModernBertModel", "modernbert", 768, 22, 12, None, 1152, 50_368, 8192, local_attention=128,
                            global_attn_every_n_layers=3),
    "gte-modernbert-reranker": text("ModernBertForSequenceClassification", "modernbert", 768, 22, 12, None, 1152, 50_368, 8192, num_labels=1),
    "embeddinggemma": text("Gemma3TextModel", "gemma3_text", 768, 24, 3, 1, 1152, 262_144, 2048, head_dim=256, sliding_window=512,
                           use_bidirectional_attention=True, query_pre_attn_scalar=256),
    # decoders that pool: the engine keeps keys and values all the same
    "qwen3-reranker": text("Qwen3ForSequenceClassification", "qwen3", 1024, 28, 16, 8, 3072, 151_669, 40_960, head_dim=128, num_labels=1,
                           tie_word_embeddings=True),
}

_QWEN3_SMALL = text("Qwen3ForCausalLM", "qwen3", 1024, 28, 16, 8, 3072, 151_936, 40_960, head_dim=128, tie_word_embeddings=True)
_EAGLE3 = text("LlamaForCausalLMEagle3", "llama", 4096, 1, 32, 8, 12_288, 151_936, 40_960, head_dim=128, draft_vocab_size=32_000)
_EAGLE = text("LlamaForCausalLM", "llama", 4096, 1, 32, 8, 14_336, 128_256, 131_072)
DRAFTS: dict[str, tuple[str, Config | None, Config]] = {
    "qwen3-8b and a smaller one": ("qwen3-8b", _QWEN3_SMALL, {"method": "draft_model", "num_speculative_tokens": 3}),
    "qwen3-8b and EAGLE 3": ("qwen3-8b", _EAGLE3, {"method": "eagle3", "num_speculative_tokens": 3}),
    "llama-3.1-8b and EAGLE": ("llama-3.1-8b", _EAGLE, {"method": "eagle", "num_speculative_tokens": 2}),
    "glm-4.5-air and its MTP layer": ("glm-4.5-air", None, {"method": "mtp", "num_speculative_tokens": 1}),
    "qwen3-next-80b and its MTP layer": ("qwen3-next-80b", None, {"method": "mtp", "num_speculative_tokens": 2}),
    "qwen3.6-27b and its MTP layer": ("qwen3.6-27b", None, {"method": "mtp", "num_speculative_tokens": 1}),
    "qwen3-8b and its own words": ("qwen3-8b", None, {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}),
}
"""Models with who guesses for them: the config's name, the config.json of its draft, and what speculative decoding is asked for."""
OF_THE_MTP = {"glm-4.5-air": {"num_nextn_predict_layers": 1}, "qwen3.6-27b": {"mtp_num_hidden_layers": 1}}
"""What the published configs say of their MTP layers, and those above leave out."""

PUBLISHED = tuple(sorted(path.stem for path in modelfolder.CONFIGS.glob("*.json")))


def configs() -> dict[str, Config]:
    """By name: the whole published configs, and those written down here."""
    return {**{name: modelfolder.published(name) for name in PUBLISHED}, **MORE}


def with_draft(name: str) -> Config:
    """The config of a model of DRAFTS, with what its MTP layers need."""
    target = DRAFTS[name][0]
    config, more = dict(configs()[target]), OF_THE_MTP.get(target, {})
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **more}
        return config
    return {**config, **more}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(configs()))
