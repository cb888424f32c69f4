# How many times the rate of embeddings, head and norms (AdamW) should that of the matrices of the blocks be under Muon?
# The dense model in the setting of optimizers_shakespeare.py.
#
#   python compare.py config/compare/optimizers_ratio.py --cluster=pool --jobs=6
#
# An arm is a ratio; its rates are chosen so that the matrices have 4e-3, 8e-3 and 1.6e-2 in each. Of 1, 4 and 16 the
# ratio 1 was the best in the sweep, so 1/4 was added.

include('optimizers_shakespeare.py')

claim = 'Under Muon, each at its own best rate, {arm} has a lower loss on Tiny Shakespeare after 250 iterations than {baseline}'
note = 'The dense model in the setting of optimizers_shakespeare; an arm is the rate of the matrices over that of the rest.'
_dense = 'config/shakespeare_char.py --optimizer=muon'
arms = dict(x4=f'{_dense} --hidden_lr=4', x1=_dense, x16=f'{_dense} --hidden_lr=16', x025=f'{_dense} --hidden_lr=0.25')
sizes = None
learning_rates = dict(
    x4=(1e-3, 2e-3, 4e-3), x1=(4e-3, 8e-3, 1.6e-2), x16=(2.5e-4, 5e-4, 1e-3), x025=(1.6e-2, 3.2e-2, 6.4e-2)
)
