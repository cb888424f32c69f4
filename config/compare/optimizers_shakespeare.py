# Does a structure still gain under a better optimizer? nanoGPT's Shakespeare model for 250 iterations, every MLP matrix
# parameterized in eight ways, under AdamW and under Muon. Each arm has its own best rate; the rate falls to 0.
#
#   python compare.py config/compare/optimizers_shakespeare.py --cluster=pool --jobs=6
#
# About 450 runs of seconds each on a GPU. A size here is an optimizer: every arm is compared with dense under the same
# one. Under muon the matrices of the blocks have 4 times the rate of the rest (hidden_lr), and learning_rate is that of
# the rest. In muon_x1 both have the same rate, which optimizers_ratio.py found best for dense. The sweep shows what a shared
# rate would give.

import torch

claim = 'Each at its own best rate and under the same optimizer, {arm} has a lower loss on Tiny Shakespeare after 250 iterations than {baseline}'
note = (
    "nanoGPT's Shakespeare model by characters, 250 iterations, warm-up 25, cosine to 0; the whole validation split. Every"
    ' MLP matrix is parameterized: products of larger matrices (k), or about a third of the dense parameters.'
)
common = (
    '--max_iters=250 --lr_decay_iters=250 --warmup_iters=25 --min_lr=0 --eval_interval=125 --eval_iters=0'
    ' --save_checkpoint=false'
)
if torch.cuda.is_available():
    common += ' --cuda_graph=true'
arms = dict(
    dense='config/shakespeare_char.py',
    k2000='config/expansive_shakespeare.py --expansion=2000',
    k10000='config/expansive_shakespeare.py --expansion=10000',
    btt='config/structured/btt.py',
    monarch='config/structured/monarch.py',
    low_rank='config/structured/low_rank.py',
    block_dense='config/structured/block_dense.py',
    kronecker='config/structured/kronecker.py',
)
sizes = dict(adamw='', muon='--optimizer=muon --hidden_lr=4', muon_x1='--optimizer=muon')
learning_rates = {f'{arm}@adamw': (1e-3, 2e-3, 4e-3) for arm in arms}
learning_rates |= {f'{arm}@muon': (5e-4, 1e-3, 2e-3, 4e-3) for arm in arms}
learning_rates |= {f'{arm}@muon_x1': (2e-3, 4e-3, 8e-3, 1.6e-2) for arm in arms}
seeds = 8
worth = 0.02
match = 'tokens'
bench = False
