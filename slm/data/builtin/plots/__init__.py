"""The plots of the built-in stories."""

from .adventures import lost_at_market, treasure
from .courage import dark_night, learning
from .forest import bridge, noisy_song, race, small_and_big
from .friendship import lost_toy, new_neighbor, sharing
from .gifts import present, sick_friend, surprise_birthday
from .home import baking, broken_vase
from .kindness import hungry_winter, hurt_animal, lost_baby
from .outdoors import sand_castle, seed
from .scene import Plot
from .weather import kite, picnic, snowman

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
