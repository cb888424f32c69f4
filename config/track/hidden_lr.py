# Dense matrices; those of the blocks have twice the learning rate of the embeddings.
#
#   python compare.py config/track/hidden_lr.py

include('small.py')
arms['hidden_lr'] = '--hidden_lr=2'
learning_rates = dict(dense=learning_rates, hidden_lr=(1e-3, 2e-3, 4e-3))
