# The transfer seed's comparison as it was run: its two methods, learning rate 1e-4 for all arms. Different from there: the
# figure is the one after the last epoch, not the best of all.
#
#   python compare.py config/compare/letter_counting_seed.py

include('letter_counting.py')
claim = 'Letter counting at the shared learning rate 1e-4: {arm} makes fewer errors than {baseline} after 50 epochs'
arms = dict(scratch='', onehot='--method=onehot', double='--method=double')
learning_rates = ()
