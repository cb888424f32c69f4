# letter_counting.py at the seed's smallest size alone, with the method that the seed settled on and its control, fewer
# seeds and rates: what two CPU cores do in three quarters of an hour.
#
#   python compare.py config/compare/letter_counting_64.py --jobs=2

include('letter_counting.py')
arms = {k: arms[k] for k in ('scratch', 'onehot', 'random_onehot')}
sizes = {'64': '--d_model=64'}
learning_rates = (3e-4, 1e-3, 3e-3)
sweep_seeds = 2
extend = 1
seeds = 10
