"""The architectures that the pretend server can "run": those that llama.cpp knew in 2026, and Ollama's own.

A model of another architecture is created, listed and shown like any other; only loading it fails.
"""

from __future__ import annotations

_LLAMA_CPP = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bert bitnet bloom chameleon chatglm
codeshell cogvlm cohere2 command-r dbrx deci deepseek deepseek2 deepseek2-ocr dots1 dream ernie4_5
ernie4_5-moe eurobert exaone exaone4 exaone-moe falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4
gemma-embedding glm4 glm4moe glm-dsa gpt2 gptj gptneox gpt-oss granite granitehybrid granitemoe grok
grovemoe hunyuan-dense hunyuan-moe internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-linear lfm2
lfm2moe llada llada-moe llama llama4 llama-embed maincoder mamba mamba2 mimo2 minicpm minicpm3 minimax-m2
mistral3 mistral4 modern-bert mpt nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo
olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2
qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe refact rnd1 rwkv6 rwkv6qwen2
rwkv7 seed_oss smallthinker smollm3 stablelm starcoder starcoder2 step35 t5 t5encoder wavtokenizer-dec
xverse
"""
_OLLAMA = (
    "clip deepseekocr gemma3 gptoss laguna mllama mistral3 nemotron_h_omni qwen25vl solar glm-ocr glmocr"
)
KNOWN = frozenset(f"{_LLAMA_CPP} {_OLLAMA}".split())
