import pytest
import torch

from dream4d.occupancy import OccupancyGrid, dilate, without_floaters


def ball(points):
    return 10.0 * (points.norm(dim=-1) < 0.5)


def generator():
    return torch.Generator().manual_seed(0)


def test_all_is_occupied_until_the_first_update_then_what_is_dense():
    grid = OccupancyGrid(16)
    assert grid.occupied.all()
    grid.update(ball, generator())
    assert grid.occupied.float().mean().item() == pytest.approx(4 / 3 * torch.pi * 0.5**3 / 8, rel=0.1)
    assert grid.occupied[8, 8, 8]
    assert not grid.occupied[0, 8, 8]


def test_index_order_is_x_y_z_and_the_radius_scales():
    grid = OccupancyGrid(8, radius=2.0)
    low, high = torch.tensor([1.0, -2, 0]), torch.tensor([2.0, 0, 1])
    grid.update(lambda points: 5.0 * ((points > low) & (points < high)).all(-1), generator())
    assert torch.equal(torch.nonzero(grid.occupied).amin(0), torch.tensor([6, 0, 4]))
    assert torch.equal(torch.nonzero(grid.occupied).amax(0), torch.tensor([7, 3, 5]))


def test_what_vanishes_decays():
    grid = OccupancyGrid(4, threshold=1.0)
    g = generator()
    grid.update(lambda points: torch.full((len(points),), 3.0) * (points[:, 0] > 0), g)
    for _ in range(21):  # 3 * .95^21 is the last above 1
        grid.update(lambda points: torch.zeros(len(points)), g)
    assert grid.values.max().item() == pytest.approx(3 * 0.95**21)
    assert grid.occupied[2:].all()
    assert not grid.occupied[:2].any()


def test_moving_scenes_take_the_largest_over_times():
    seen = []

    def passing(points, time):
        seen.append(time)
        return 10.0 * ((points[:, 0] + 1) / 2 - time).abs().lt(0.1)

    grid = OccupancyGrid(8)
    grid.update(passing, generator(), times=12)
    assert grid.occupied.all()
    assert [int(time * 12) for time in seen] == list(range(12))


def test_dilation_grows_by_cells():
    grid = OccupancyGrid(9, dilation=1)
    grid.update(lambda points: 10.0 * (points.abs() < 1 / 9).all(-1), generator())
    assert torch.equal(torch.nonzero(grid.occupied).amin(0), torch.tensor([3, 3, 3]))
    assert grid.occupied.sum() == 27


def test_points_are_looked_up_in_their_cells():
    grid = OccupancyGrid(16, radius=2.0)
    grid.update(lambda points: 5.0 * (points[:, 0] > 1), generator())
    points = 4 * torch.rand(1000, 3, generator=generator()) - 2
    assert torch.equal(grid.at(points), points[:, 0] > 1)
    assert grid.at(torch.tensor([[2.0, 2.0, -2.0]])), "the cube's corners are inside"


def test_state_returns():
    grid, other = OccupancyGrid(8), OccupancyGrid(8)
    grid.update(ball, generator())
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other.values, grid.values)
    assert torch.equal(other.occupied, grid.occupied)
    with pytest.raises(ValueError, match="saved grid"):
        OccupancyGrid(4).load_state_dict(grid.state_dict())


def test_floaters_are_small_faint_pieces_that_touch_nothing_solid():
    cells, solid = torch.zeros(2, 20, 20, 20, dtype=torch.bool)
    body, cloud, bead = (slice(2, 6),) * 3, (slice(10, 15),) * 3, (17, 2, 2)
    cells[body] = cells[cloud] = True
    solid[3, 3, 3] = True
    cells[6, 6, 6] = cells[7, 7, 6] = True  # hangs on the body by corners
    cells[bead] = solid[bead] = True
    kept = cells.clone()
    cells[2, 17, 17] = cells[2, 17, 18] = cells[17, 17, 2] = True  # specks
    solid[0, 0, 19] = True  # where nothing is
    assert torch.equal(without_floaters(cells, solid, smallest=100), kept)
    assert not without_floaters(torch.zeros_like(cells), solid, smallest=100).any()


def test_dilation():
    cells = torch.zeros(7, 7, 7, dtype=torch.bool)
    cells[3, 3, 0] = True
    grown = torch.zeros_like(cells)
    grown[2:5, 2:5, :2] = True
    assert torch.equal(dilate(cells, 1), grown)
    assert torch.equal(dilate(cells, 0), cells)
