# Continue training a factorized GPT-2 with Krony-PT's recipe: a small constant rate, 327,680 tokens per step.
#
#   python train.py config/kronecker/finetune.py --init_from=out/kronecker-95m/ckpt.pt --out_dir=out/kronecker-95m-tuned
#
# Krony-PT trained on OpenWebText, and its factors had one rate. Here each has its own (structured_lr, which is in the
# checkpoint). 6e-5 is not a measured optimum. Loss and time: not measured yet.

init_from = 'out/kronecker-81m/ckpt.pt'
out_dir = 'out/kronecker-81m-tuned'

dataset = 'gutenberg'
block_size = 1024
batch_size = 32
gradient_accumulation_steps = 10
learning_rate = 6e-5
schedule = 'wsd'
warmup_iters = 100
wsd_decay_iters = 0  # constant to the end
max_iters = lr_decay_iters = 4000  # 1.3B tokens, about ten times the data set
eval_interval = 200
eval_iters = 20
log_interval = 10
