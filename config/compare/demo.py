# The smallest comparison with all parts. A small GPT on Tiny Shakespeare: dense, with expanded MLPs, and dense under Muon;
# up to six random seeds, a sweep of learning rates. It takes a minute or two on two CPU cores:
#
#   make compare-demo
#
# What to expect: muon "better by worth", expanded "undecided" (the noise is larger than the effect). 100 steps of so
# small a model say nothing about large ones.

claim = '{arm} has a lower loss than {baseline} after 100 steps at their best learning rates (demo, small model)'
common = (
    '--dataset=shakespeare_char --block_size=64 --batch_size=8 --gradient_accumulation_steps=1'
    ' --n_layer=2 --n_head=4 --n_embd=64 --eval_iters=20 --eval_interval=25 --log_interval=10'
    ' --learning_rate=3e-3 --min_lr=3e-4 --warmup_iters=10 --max_iters=100 --lr_decay_iters=100 --device=cpu'
)
arms = dict(
    dense='',
    expanded='--linear=expanded --linear_layers=mlp --expansion=256',
    muon='--optimizer=muon',
)
learning_rates = dict.fromkeys(arms, (1.5e-3, 3e-3, 6e-3)) | dict(muon=(1.2e-2, 2.4e-2, 4.8e-2))
sweep_seeds = 3
extend = 1
seeds = 6
worth = 0.05
match = 'tokens'
cluster = 'pool'  # runs of seconds
