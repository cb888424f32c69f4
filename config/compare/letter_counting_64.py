# letter_counting.py at its smallest size, with fewer arms, seeds and rates: what two CPU cores decide in an hour or two.
#
#   python compare.py config/compare/letter_counting_64.py --bench=false

include('letter_counting.py')
arms = dict(scratch='', onehot='--method=onehot', random_onehot='--method=random_onehot')
sizes = {'64': '--d_model=64'}
learning_rates = (1e-3, 3e-3, 1e-2)
sweep_seeds = 2
seeds = 6
