# Dense matrices; those of the blocks are moved by NorMuon at four times the rate of the embeddings, which stay with AdamW.
#
#   python compare.py config/track/normuon.py

include('small.py')
arms['normuon'] = '--optimizer=normuon --hidden_lr=4'
learning_rates = dict(dense=learning_rates, normuon=(4e-3, 8e-3, 1.6e-2))
