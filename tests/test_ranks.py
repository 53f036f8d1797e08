from tests import ranks_helpers as on


def test_results_come_in_rank_order(host_ranks):
    assert [index for index, _, _ in host_ranks.run(on.place)] == [0, 1, 2, 3]
