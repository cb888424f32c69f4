# Is growing a small model cheaper than training the large one? It counts all FLOPs and seconds until one loss is
# reached. The model has 6 layers, 256 wide, 5.8M parameters (1.0M of them for the vocabulary), and sees 59M tokens of
# Gutenberg in a vocabulary of 4,096 (1.2 epochs).
#
#   python compare.py config/compare/growth_small.py --cluster=pool --jobs=8      on a GPU; one seed: about 20 minutes of an H100
#   python compare.py --show=results/growth_small                                 the log of an earlier run of it, one seed
#
# The rates of scratch are swept at full length; all other arms take its best rate. Sources are trained for a quarter of
# the iterations (-early: a tenth). Their rate is constant, because they grow before it would decay. They have half the
# width (narrow), half the depth (shallow), a third of the depth (third), or half the depth, itself stacked from one layer
# (staged). random is narrow at its initialisation, without training. The arm "alone" is the small model, trained with
# the FLOPs of scratch. The target loss of all others is the best final loss of scratch.

claim = 'After as many tokens, {arm} has a lower loss than {baseline}'
name = 'growth_small_seeds'  # results/growth_small has the earlier run
common = (
    'config/gpt2.py --n_layer=6 --n_embd=256 --n_head=4 --batch_size=64 --gradient_accumulation_steps=1'
    ' --block_size=256 --dataset=gutenberg_bpe --learning_rate=2.4e-3 --min_lr=2.4e-4 --warmup_iters=100'
    ' --max_iters=3600 --lr_decay_iters=3600 --eval_interval=180 --eval_iters=10 --always_save_checkpoint=false'
)
_source = '--min_lr=2.4e-3 --max_iters=900 --lr_decay_iters=900'
_early = '--min_lr=2.4e-3 --max_iters=360 --lr_decay_iters=360'
_staged = '--min_lr=2.4e-3 --max_iters=540 --lr_decay_iters=540'
_from = '--init_from=transfer --transfer_from'
steps = {
    'narrow': f'--n_embd=128 --n_head=2 {_source}',
    'shallow': f'--n_layer=3 {_source}',
    'third': f'--n_layer=2 {_source}',
    'narrow-early': f'--n_embd=128 --n_head=2 {_early}',
    'shallow-early': f'--n_layer=3 {_early}',
    'third-early': f'--n_layer=2 {_early}',
    'quarter-early': f'--n_layer=1 {_early}',
    'staged': f'--n_layer=3 {_staged} {_from}={{quarter-early}} --transfer_method=stack',
    'random': '--n_embd=128 --n_head=2 --learning_rate=1e-9 --min_lr=1e-9 --warmup_iters=0 --max_iters=1 --lr_decay_iters=1',
}
_clone = f'{_from}={{narrow}} --transfer_method=clone'
arms = {
    'scratch': '',
    'alone': '--n_embd=128 --n_head=2 --max_iters=11250 --lr_decay_iters=11250',
    'stack': f'{_from}={{shallow}} --transfer_method=stack',
    'zero_block': f'{_from}={{shallow}} --transfer_method=zero_block',
    'interleave': f'{_from}={{shallow}} --transfer_method=interleave',
    'clone-0': _clone,  # must do as the small model: no capacity without noise
    'clone-0.3': f'{_clone} --transfer_noise=0.3',
    'clone-1': f'{_clone} --transfer_noise=1',
    'clone-2': f'{_clone} --transfer_noise=2',
    'spectrum': f'{_from}={{narrow}} --transfer_method=spectrum',
    'bert2bert': f'{_from}={{narrow}} --transfer_method=bert2bert',
    'ligo': f'{_from}={{narrow}} --transfer_method=ligo',
    'double': f'{_from}={{narrow}} --transfer_method=double',
    'one_hot': f'{_from}={{narrow}} --transfer_method=one_hot',
    # cheaper sources
    'stack-early': f'{_from}={{shallow-early}} --transfer_method=stack',
    'stack-third': f'{_from}={{third}} --transfer_method=stack',
    'stack-third-early': f'{_from}={{third-early}} --transfer_method=stack',
    'stack-staged': f'{_from}={{staged}} --transfer_method=stack',
    'zero_block-early': f'{_from}={{shallow-early}} --transfer_method=zero_block',
    'clone-1-early': f'{_from}={{narrow-early}} --transfer_method=clone --transfer_noise=1',
    # half the rate after growing; moments that start anew
    'stack-half-rate': f'{_from}={{shallow}} --transfer_method=stack --hidden_lr=0.5',
    'clone-1-half-rate': f'{_clone} --transfer_noise=1 --hidden_lr=0.5',
    'clone-1-fresh': f'{_clone} --transfer_noise=1 --transfer_moments=fresh',
    # controls: singular values alone, a random basis, shuffled rows, identity padding of what was never trained
    'spectrum_random': f'{_from}={{narrow}} --transfer_method=spectrum_random',
    'random_lift-1': f'{_from}={{narrow}} --transfer_method=random_lift --transfer_noise=1',
    'shuffle': f'{_from}={{narrow}} --transfer_method=shuffle',
    'one_hot-random': f'{_from}={{random}} --transfer_method=one_hot',
}
_others = [k for k in [*arms, *steps] if k not in ('scratch', 'random')]
learning_rates = dict(scratch=(8e-4, 1.4e-3, 2.4e-3, 4e-3, 7e-3)) | dict.fromkeys(_others, 'scratch')
horizons = dict.fromkeys(arms, (0.55, 0.75)) | dict(scratch=(0.55, 0.75, 1), alone=(1,))
mismatch = dict(alone='it has the FLOPs of scratch')
match = 'tokens'
sweep_seeds = 2
seeds = 3
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
