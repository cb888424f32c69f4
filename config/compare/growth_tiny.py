# A growth comparison that takes minutes on a CPU: growth_small.py with two ways to grow and a model of 2 layers. It
# shows how such a comparison works, and says nothing about models that are worth training.
#
#   python compare.py config/compare/growth_tiny.py

claim = 'After as many tokens, {arm} has a lower loss than {baseline} (demo, tiny model)'
common = (
    'config/gpt2.py --dataset=shakespeare_char --block_size=64 --batch_size=8 --gradient_accumulation_steps=1'
    ' --n_layer=2 --n_embd=64 --n_head=4 --learning_rate=3e-3 --min_lr=3e-4 --warmup_iters=20 --max_iters=400'
    ' --lr_decay_iters=400 --eval_interval=20 --eval_iters=10 --device=cpu --always_save_checkpoint=false'
)
_source = '--min_lr=3e-3 --max_iters=100 --lr_decay_iters=100'  # a constant rate
steps = dict(narrow=f'--n_embd=32 --n_head=2 {_source}', shallow=f'--n_layer=1 {_source}')
_from = '--init_from=transfer --transfer_from'
arms = {
    'scratch': '',
    'stack': f'{_from}={{shallow}} --transfer_method=stack',
    'clone-1': f'{_from}={{narrow}} --transfer_method=clone --transfer_noise=1',
}
learning_rates = dict(scratch=(1.5e-3, 3e-3, 6e-3)) | {k: 'scratch' for k in [*arms, *steps] if k != 'scratch'}
sweep_seeds = 1
horizons = dict.fromkeys(arms, (0.5, 0.75)) | dict(scratch=(0.5, 0.75, 1))
seeds = 2
looks = False  # a demonstration with few seeds
cluster = 'pool'
