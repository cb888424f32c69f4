# GPT-2 XL: learned positions, LayerNorm, biases; vocabulary padded from 50257 to 50304.
#
# 1,557,686,400 parameters (1,556,048,000 without position embeddings), 10274.0 MFLOP per token at 1,024 tokens. Loss
# and step time: not measured yet.
#
#   python train.py config/gpt2_xl.py

include('gpt2.py')

n_layer = 48
n_head = 25
n_embd = 1600
batch_size = 4
gradient_accumulation_steps = 128
out_dir = 'out/gpt2_xl'
