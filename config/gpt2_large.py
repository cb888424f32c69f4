# GPT-2 large: learned positions, LayerNorm, biases; vocabulary padded from 50257 to 50304.
#
# 774,090,240 parameters (772,779,520 without position embeddings), 5199.3 MFLOP per token at 1,024 tokens. Loss and
# step time: not measured yet.
#
#   python train.py config/gpt2_large.py

include('gpt2.py')

n_layer = 36
n_head = 20
n_embd = 1280
batch_size = 8
gradient_accumulation_steps = 64
out_dir = 'out/gpt2_large'
