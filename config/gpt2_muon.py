# GPT-2 small with RoPE, RMSNorm, QK norm and squared ReLU, its matrices moved by Muon: the lowest loss by the clock that
# we know.
#
# 123,587,328 parameters, 854.7 MFLOP per token at 1,024 tokens. Val loss on Gutenberg 3.356 (all of it: --eval_iters=0)
# after these 3,894 steps (127.6M tokens), which take 4 minutes of an H200 at 60.7 ms, compilation not counted; nanoGPT's
# GPT-2 with AdamW is at 3.426 after 9 minutes there (results/bench/race.txt: one random seed each; RESULTS.md, question 7, says what flatters us).
#
#   python train.py config/gpt2_muon.py

include('gpt2.py')

bias = False
position = 'rope'
norm = 'rmsnorm'
qk_norm = True
mlp = 'relu2'

optimizer = 'muon'
matrix_lr = 1e-2  # after 1,940 steps 5e-3 was as good, 2e-2 a little worse
learning_rate = 2e-3  # of the embeddings
min_lr = 0
batch_size = 32
gradient_accumulation_steps = 1  # 32,768 tokens a step
warmup_iters = 100
max_iters = 3894
lr_decay_iters = 3894
out_dir = 'out/gpt2_muon'
