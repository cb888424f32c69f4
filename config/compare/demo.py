# The smallest comparison with all parts: two arms (a small GPT on Tiny Shakespeare, dense and with expanded MLPs),
# up to six random seeds, a sweep of learning rates. It takes a minute or two on two CPU cores:
#
#   make compare-demo
#
# 100 steps of so small a model say nothing about large ones. It shows what compare.py does.

claim = '{arm} has a lower loss than {baseline} after 100 steps at their best learning rates (demo, small model)'
common = (
    '--dataset=shakespeare_char --block_size=64 --batch_size=8 --gradient_accumulation_steps=1'
    ' --n_layer=2 --n_head=4 --n_embd=64 --eval_iters=20 --eval_interval=25 --log_interval=10'
    ' --learning_rate=3e-3 --min_lr=3e-4 --warmup_iters=10 --max_iters=100 --lr_decay_iters=100 --device=cpu'
)
arms = dict(
    dense='',
    expanded='--linear=expanded --linear_layers=mlp --expansion=256',
)
learning_rates = (1.5e-3, 3e-3, 6e-3)
sweep_seeds = 3
extend = 1
seeds = 6
worth = 0.05
match = 'tokens'
cluster = 'pool'  # runs of seconds
