// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// model is the view as bubbletea has it.
type model struct {
	Config
	*view
	ctx context.Context
}

// Messages.
type (
	// looked is a look, or why there was none.
	looked struct {
		top *status.Top
		treatments
		err error
	}
	tick struct{}
	// found is what is done to the row that was selected.
	found struct {
		of string
		treatments
		err error
	}
	// lift has that lifted, and done is what came of it.
	lift struct{ treatments }
	done struct{ text string }
)

// treatments are blocks, and treated pairs.
type treatments struct {
	blocks []status.Block
	pairs  []status.Pair
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return m.ask }

// ask asks the daemon.
func (m *model) ask() tea.Msg {
	top, treated, err := m.look(m.ctx)
	return looked{top, treated, err}
}

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.press(msg.Key())
	case tick:
		return m, m.ask
	case looked:
		m.take(msg)
		return m, tea.Tick(m.Every, func(time.Time) tea.Msg { return tick{} })
	case remembered:
		if m.story == msg.of {
			m.story.why = msg.why
		}
	case found:
		m.confirm(msg)
	case lift:
		return m, func() tea.Msg { return done{m.lift(&msg.treatments)} }
	case done:
		m.said = msg.text
		return m, nil
	}
	return m, nil
}

// take takes a look over. While the user wants it to stand still, nothing changes but what is
// wrong.
func (m *model) take(l looked) {
	m.trouble = ""
	switch {
	case l.err != nil:
		m.trouble = strings.ReplaceAll(l.err.Error(), "\n", "; ") + ": trying again"
	case !m.paused || len(m.looks) == 0:
		m.looks, m.treated = m.looks.add(l.top), l.treatments
		if m.story != nil {
			m.story.about = m.again(m.story.about)
		}
	}
}

// again returns what a story is about as it is now, if it is still there.
func (m *model) again(about any) any {
	for _, r := range m.rows(m.list) {
		if r.id == m.id {
			return r.about
		}
	}
	return about
}

// press does what a key asks for.
func (m *model) press(key tea.Key) tea.Cmd {
	name := key.String()
	m.said = ""
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case name == "ctrl+z":
		return tea.Suspend
	case m.asking != nil:
		yes := m.asking.yes
		m.asking = nil
		if name == "y" || name == "Y" {
			return func() tea.Msg { return yes }
		}
		m.said = "nothing was changed"
		return nil
	case m.typing:
		m.typed(key)
		return nil
	case m.help:
		m.help = false
		return nil
	case name == "q":
		return tea.Quit
	case len(m.looks) == 0:
		return nil
	}
	page := max(1, m.height/2)
	switch name {
	case "?", "h":
		m.help = true
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-page)
	case "pgdown":
		m.move(page)
	case "home", "g":
		m.move(-1 << 30)
	case "end", "G":
		m.move(1 << 30)
	case "tab", "right":
		m.show((m.list + 1) % numLists)
	case "shift+tab", "left":
		m.show((m.list + numLists - 1) % numLists)
	case "1", "2", "3", "4", "5", "6", "7", "8", "9":
		m.show(list(name[0] - '1'))
	case "s":
		m.sort[m.list] = (m.sort[m.list] + 1) % len(columns[m.list])
		m.turned[m.list] = false
	case "S":
		m.turned[m.list] = !m.turned[m.list]
	case "/":
		m.typing, m.story = true, nil
	case "i":
		m.nextInterface()
	case "p", "space":
		m.paused = !m.paused
	case "enter":
		if r := m.selected(m.table(m.list)); r != nil && m.story == nil {
			m.story = &story{about: r.about}
			return m.askWhy(m.story)
		}
	case "esc", "backspace":
		if m.story == nil {
			m.filter = ""
		}
		m.story = nil
	case "u":
		return m.unblock()
	}
	return nil
}

// typed is a key of the filter.
func (m *model) typed(key tea.Key) {
	switch key.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		runes := []rune(m.filter)
		m.filter = string(runes[:max(0, len(runes)-1)])
	default:
		const most = 64
		if key.Text != "" && len(m.filter)+len(key.Text) <= most {
			m.filter += clean(key.Text)
		}
	}
	m.at, m.first, m.follows = 0, 0, true
}

// nextInterface looks at the next interface, and after the last one at all.
func (m *model) nextInterface() {
	var all []string
	for _, s := range m.top().Interfaces {
		all = append(all, s.Interface)
	}
	for _, w := range m.top().Waiting {
		all = append(all, w.Interface)
	}
	next := slices.Index(all, m.iface) + 1
	m.iface = ""
	if next < len(all) {
		m.iface = all[next]
	}
	m.show(m.list)
}

// unblock looks for the blocks and the treated pairs of the selected row.
func (m *model) unblock() tea.Cmd {
	about := any(nil)
	if m.story != nil {
		about = m.story.about
	} else if r := m.selected(m.table(m.list)); r != nil {
		about = r.about
	}
	var of string
	var block *control.BlockFilter // nil: no block is meant; and so on
	var pair *control.PairFilter
	isBlock, isPair := func(*status.Block) bool { return true }, func(*status.Pair) bool { return true }
	switch about := about.(type) {
	case *status.Block:
		key := control.KeyOf(about)
		of, block = key.String(), &control.BlockFilter{Interface: about.Interface, Flow: &key}
	case *status.Pair:
		key := about.Pair()
		of, pair = key.String(), &control.PairFilter{Pair: &key}
	case *event.Verdict:
		key, err := (&control.Flow{Proto: about.Proto, Ends: [2]netip.AddrPort{about.Src, about.Dst}, VLAN: about.VLAN, InnerVLAN: about.InnerVLAN}).Key()
		if err != nil {
			m.said = err.Error()
			return nil
		}
		of, block = key.String(), &control.BlockFilter{Interface: about.Interface, Flow: &key}
		l := pairOf(about)
		pair, isPair = &control.PairFilter{CIDR: l.Initiator}, func(p *status.Pair) bool { return pairIs(l, p) }
	case *status.Leader:
		network := about.Initiator
		if about.Server.IsValid() {
			network = netip.PrefixFrom(about.Server.Addr(), about.Server.Addr().BitLen())
		}
		of, _ = tellLeader(about)
		block, isBlock = &control.BlockFilter{CIDR: network}, func(b *status.Block) bool { return blockIs(about, b) }
		pair, isPair = &control.PairFilter{CIDR: network}, func(p *status.Pair) bool { return pairIs(about, p) }
	default:
		m.said = "choose a verdict, a pair, a server, an initiator, a block or a treated pair"
		return nil
	}
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
		defer cancel()
		is := found{of: of}
		if block != nil {
			b, err := m.Source.Blocks(ctx, *block, "", 0)
			if err != nil {
				return found{of: of, err: err}
			}
			is.blocks = slices.DeleteFunc(b.Blocks, func(b status.Block) bool { return !isBlock(&b) })
		}
		if pair != nil {
			p, err := m.Source.Pairs(ctx, *pair, "", 0)
			if err != nil {
				return found{of: of, err: err}
			}
			// One is treated on all interfaces, and they stand beside each other.
			is.pairs = slices.DeleteFunc(p.Pairs, func(p status.Pair) bool { return !isPair(&p) })
			is.pairs = slices.CompactFunc(is.pairs, func(a, b status.Pair) bool { return a.Pair() == b.Pair() })
		}
		return is
	}
}

// confirm asks whether what was found is to be lifted.
func (m *model) confirm(f found) {
	var text string
	switch blocks, pairs := len(f.blocks), len(f.pairs); {
	case f.err != nil:
		m.said = f.err.Error()
		return
	case blocks+pairs == 0:
		m.said = "nothing of it is blocked: " + f.of
		return
	case blocks == 1 && pairs == 0:
		text = fmt.Sprintf("unblock %s on %s?", control.KeyOf(&f.blocks[0]), f.blocks[0].Interface)
	case pairs == 0:
		text = fmt.Sprintf("lift %d blocks of %s?", blocks, f.of)
	case pairs == 1 && blocks == 0:
		text = fmt.Sprintf("let %s connect again?", f.pairs[0].Pair())
	case pairs == 1:
		text = fmt.Sprintf("lift %s and let %s connect again?", event.Counted(blocks, "block"), f.pairs[0].Pair())
	case blocks == 0:
		text = fmt.Sprintf("let %d pairs of %s connect again?", pairs, f.of)
	default:
		text = fmt.Sprintf("lift %s and let %d pairs connect again, of %s?", event.Counted(blocks, "block"), pairs, f.of)
	}
	m.asking = &question{text, lift{f.treatments}}
}

// lift lifts blocks, and ends the treatment of pairs. It says what came of it.
func (m *model) lift(t *treatments) string {
	ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
	defer cancel()
	var blocks control.Lifted
	var pairs control.Forgotten
	// What is not there any more is over by itself.
	for i := range t.blocks {
		key := control.KeyOf(&t.blocks[i])
		l, err := m.Source.Lift(ctx, control.BlockFilter{Interface: t.blocks[i].Interface, Flow: &key})
		if err != nil && !errors.Is(err, control.ErrNotFound) {
			return fmt.Sprintf("after %d blocks: %v", blocks.Blocks, err)
		}
		blocks.Blocks += l.Blocks
		blocks.Packets += l.Packets
		blocks.Bytes += l.Bytes
	}
	for i := range t.pairs {
		key := t.pairs[i].Pair()
		f, err := m.Source.ForgetPairs(ctx, control.PairFilter{Pair: &key})
		if err != nil && !errors.Is(err, control.ErrNotFound) {
			return fmt.Sprintf("after %d blocks and %d pairs: %v", blocks.Blocks, pairs.Pairs, err)
		}
		pairs.Pairs += f.Pairs
		pairs.Packets += f.Packets
		pairs.Bytes += f.Bytes
	}
	var who []string
	if len(t.blocks) > 0 {
		who = append(who, fmt.Sprintf("%d flows pass", blocks.Blocks))
	}
	if len(t.pairs) > 0 {
		who = append(who, fmt.Sprintf("%d pairs may connect", pairs.Pairs))
	}
	return fmt.Sprintf("%s again: %d packets, %s had been dropped", strings.Join(who, " and "), blocks.Packets+pairs.Packets, event.ByteCount(blocks.Bytes+pairs.Bytes))
}

// View implements tea.Model.
func (m *model) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

// text returns the whole screen.
func (v *view) text() string {
	var b strings.Builder
	for i, l := range v.lines() {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(l.render(v.width, true, v.colors))
	}
	return b.String()
}
