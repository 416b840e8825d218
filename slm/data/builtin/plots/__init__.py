"""The plots of the built-in stories."""

from slm.data.builtin.plots.adventures import lost_at_market, treasure
from slm.data.builtin.plots.courage import dark_night, learning
from slm.data.builtin.plots.forest import bridge, noisy_song, race, small_and_big
from slm.data.builtin.plots.friendship import lost_toy, new_neighbor, sharing
from slm.data.builtin.plots.gifts import present, sick_friend, surprise_birthday
from slm.data.builtin.plots.home import baking, broken_vase
from slm.data.builtin.plots.kindness import hungry_winter, hurt_animal, lost_baby
from slm.data.builtin.plots.outdoors import sand_castle, seed
from slm.data.builtin.plots.scene import Plot
from slm.data.builtin.plots.weather import kite, picnic, snowman

PLOTS: tuple[Plot, ...] = (
    baking,
    bridge,
    broken_vase,
    dark_night,
    hungry_winter,
    hurt_animal,
    kite,
    learning,
    lost_at_market,
    lost_baby,
    lost_toy,
    new_neighbor,
    noisy_song,
    picnic,
    present,
    race,
    sand_castle,
    seed,
    sharing,
    sick_friend,
    small_and_big,
    snowman,
    surprise_birthday,
    treasure,
)
