# Dense matrices; those of the blocks are moved by Muon at four times the rate of the embeddings, which stay with AdamW.
#
#   python compare.py config/track/muon.py

include('small.py')
arms['muon'] = '--optimizer=muon --hidden_lr=4'
learning_rates = dict(dense=learning_rates, muon=(1e-3, 2e-3, 4e-3))
