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
		top    *status.Top
		blocks []status.Block
		err    error
	}
	tick struct{}
	// found are the blocks of what was selected to be unblocked.
	found struct {
		of     string
		blocks []status.Block
		err    error
	}
	// lift has blocks lifted, and done is what came of that.
	lift struct{ blocks []status.Block }
	done struct{ text string }
)

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return m.ask }

// ask asks the daemon.
func (m *model) ask() tea.Msg {
	top, blocks, err := m.look(m.ctx)
	return looked{top, blocks, err}
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
		return m, func() tea.Msg { return done{m.lift(msg.blocks)} }
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
		m.looks, m.view.blocks = m.looks.add(l.top), l.blocks
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
	case "1", "2", "3", "4", "5", "6", "7", "8":
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

// unblock looks for the blocks of the selected row.
func (m *model) unblock() tea.Cmd {
	about := any(nil)
	if m.story != nil {
		about = m.story.about
	} else if r := m.selected(m.table(m.list)); r != nil {
		about = r.about
	}
	var filter control.BlockFilter
	var of string
	is := func(*status.Block) bool { return true }
	switch about := about.(type) {
	case *status.Block:
		key := control.KeyOf(about)
		filter.Interface, filter.Flow, of = about.Interface, &key, key.String()
	case *event.Verdict:
		key, err := (&control.Flow{Proto: about.Proto, Ends: [2]netip.AddrPort{about.Src, about.Dst}, VLAN: about.VLAN, InnerVLAN: about.InnerVLAN}).Key()
		if err != nil {
			m.said = err.Error()
			return nil
		}
		filter.Interface, filter.Flow, of = about.Interface, &key, key.String()
	case *status.Leader:
		filter.CIDR = about.Initiator
		if about.Server.IsValid() {
			filter.CIDR = netip.PrefixFrom(about.Server.Addr(), about.Server.Addr().BitLen())
		}
		of, _ = tellLeader(about)
		is = func(b *status.Block) bool { return blockIs(about, b) }
	default:
		m.said = "choose a verdict, a pair, a server, an initiator or a block to unblock"
		return nil
	}
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
		defer cancel()
		b, err := m.Source.Blocks(ctx, filter, "", 0)
		if err != nil {
			return found{of: of, err: err}
		}
		return found{of: of, blocks: slices.DeleteFunc(b.Blocks, func(b status.Block) bool { return !is(&b) })}
	}
}

// confirm asks whether the blocks that were found are to be lifted.
func (m *model) confirm(f found) {
	switch n := len(f.blocks); {
	case f.err != nil:
		m.said = f.err.Error()
	case n == 0:
		m.said = "nothing of it is blocked: " + f.of
	case n == 1:
		m.asking = &question{fmt.Sprintf("unblock %s on %s?", control.KeyOf(&f.blocks[0]), f.blocks[0].Interface), lift{f.blocks}}
	default:
		m.asking = &question{fmt.Sprintf("lift %d blocks of %s?", n, f.of), lift{f.blocks}}
	}
}

// lift lifts blocks, and says what came of it.
func (m *model) lift(blocks []status.Block) string {
	ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
	defer cancel()
	var sum control.Lifted
	for i := range blocks {
		key := control.KeyOf(&blocks[i])
		l, err := m.Source.Lift(ctx, control.BlockFilter{Interface: blocks[i].Interface, Flow: &key})
		switch {
		case errors.Is(err, control.ErrNotFound): // it is over by itself
			continue
		case err != nil:
			return fmt.Sprintf("after %d blocks: %v", sum.Blocks, err)
		}
		sum.Blocks += l.Blocks
		sum.Packets += l.Packets
		sum.Bytes += l.Bytes
	}
	return fmt.Sprintf("%d flows pass again: %d packets, %s had been dropped", sum.Blocks, sum.Packets, event.ByteCount(sum.Bytes))
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
