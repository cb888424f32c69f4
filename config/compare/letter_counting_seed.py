# The comparison of small-to-large transfer as its author ran it: the two methods, learning rate 1e-4 for all arms. One
# thing differs: the figure is the one after the last epoch, not the best of all. letter_counting.py has none of these
# runs, since it trains the deciding random seeds at the best rate only. It took 77 and 89 seconds of an H100 (in two
# parts, by size).
#
#   python compare.py config/compare/letter_counting_seed.py --cluster=pool --jobs=2

include('letter_counting.py')
claim = 'Letter counting at the shared learning rate 1e-4: {arm} makes fewer errors than {baseline} after 50 epochs'
note = 'The small model is trained for 20 of the 50 epochs, at half the width.'
arms = dict(scratch='', onehot='--method=onehot', double='--method=double')
learning_rates = ()
