// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/browser"
)

// screenshot is how "make screenshot" draws the picture of the manual.
var screenshot = flag.String("screenshot", "", "draw the live view into this file (PNG)")

// patience bounds what a browser does here. It takes seconds, and longer where others want
// the CPU.
const patience = 4 * time.Minute

// opened is a page in a tab, and what the daemon behind it is.
type opened struct {
	*browser.Page
	t *testing.T
	f *fake
	s *Server
}

func (o *opened) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *opened) until(expression string) {
	o.t.Helper()
	o.must(o.Until(expression))
}

// shows waits until an element shows a text.
func (o *opened) shows(id, text string) {
	o.t.Helper()
	o.until(fmt.Sprintf("document.getElementById(%q)?.innerText.includes(%q)", id, text))
}

// fine fails if anything went wrong in the page, or if it asked others for something.
func (o *opened) fine() {
	o.t.Helper()
	for _, wrong := range o.Wrong() {
		if !strings.Contains(wrong, "404 (Not Found) "+o.s.URL()+"api/explain?") { // no capture is kept
			o.t.Errorf("in the page: %s", wrong)
		}
	}
	for _, url := range o.Requests() {
		if !strings.HasPrefix(url, o.s.URL()) {
			o.t.Errorf("the page asked for %s", url)
		}
	}
}

// The page does what it is for in the browser that people have.
func TestPageInChromium(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := browser.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	tests := map[string]func(*opened){"live": live, "hostile names": hostileNames, "undo": undo, "widths": widths, "no daemon": noDaemon, "history": past, "late answer": lateAnswer}
	if *screenshot != "" {
		tests["picture"] = picture
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := &opened{t: t, f: newFake(t)}
			if name == "history" || name == "widths" {
				o.keepPast()
			}
			c := Config{Daemon: daemonOf(t, o.f), Explain: o.f.explained}
			if name == "undo" {
				c.Token = token
			}
			o.s = serve(t, c)
			if o.Page, err = b.Open(o.s.URL(), 1280, 800); err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			test(o)
		})
	}
}

// sendUntil has events logged again and again until the page shows a text: it may not follow
// them yet.
func (o *opened) sendUntil(id, text string, events ...event.Event) {
	o.t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		for {
			for _, e := range events {
				o.f.log.Add(e)
			}
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	o.shows(id, text)
}

func live(o *opened) {
	o.f.mu.Lock()
	o.f.worries = []status.Worry{{Kind: status.WorryTableFull, What: "blocked", Text: "the table blocked is 92 % full"}}
	o.f.mu.Unlock()
	o.shows("state", "daemon 1, cpu, pid")
	o.shows("worries", "eth0: the table blocked is 92 % full")
	o.shows("interfaces", "/etc/earlydrop/policy.yaml")
	o.shows("rules", "tunnels")
	o.until(`document.querySelectorAll("#live canvas").length === 4`)
	o.shows("gateway", "40 of 1,000 detected")
	o.shows("events", "192.0.2.77:8388") // what was before
	first := func(text string) string {
		return fmt.Sprintf(`document.querySelector("#top tbody tr").innerText.includes(%q)`, text)
	}
	o.until(first("10.0.0.2"))
	o.must(o.Choose("#top-sort", "dropped_bytes"))
	o.until(first("10.0.0.3"))
	o.must(o.Choose("#top-list", "servers"))
	o.until(first("tcp 192.0.2.7:8388") + ` && !document.getElementById("top").innerText.includes("10.0.0.3")`)
	o.must(o.Choose("#top-list", "initiators"))
	o.shows("top", "2001:db8:1:2::/64")
	o.must(o.Choose("#top-list", "pairs"))
	o.sendUntil("events", "192.0.2.9:8388", verdict("10.0.0.9:9", "192.0.2.9:8388", "shadowsocks", "tunnels"), verdict("10.0.0.8:8", "192.0.2.8:443", "background", ""))
	// Rates are of two answers: of packets, 1500 more each time.
	o.until(`[...document.querySelectorAll("#chart-packets .u-value")].some(v => /^[0-9.]+ ?k?$/.test(v.innerText) && v.innerText !== "0")`)
	if all, err := browser.Value[bool](o.Page, `document.getElementById("events").innerText.includes("192.0.2.8:443")`); err != nil || all {
		o.t.Errorf("a flow that passes undetected is shown unasked: %v", err)
	}
	o.must(o.Choose("#event-choice", "all"))
	o.shows("events", "192.0.2.8:443")

	// One flow, by the keyboard alone.
	o.must(browserFocus(o.Page, `#events a[href^="#flow/"]`))
	o.must(o.Press("\r"))
	o.shows("flow", "tcp 10.0.0.")
	o.shows("flow", "compact 1")
	o.shows("flow", "0.9700")
	o.must(o.Click(`nav a[href="#live"]`))
	o.until(`!document.getElementById("live").hidden && document.getElementById("flow").hidden`)
	o.must(o.Dark(true))
	o.until(`getComputedStyle(document.body).backgroundColor !== "rgb(255, 255, 255)"`)
	o.must(o.Dark(false))
	o.until(`getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)"`)
	o.fine()
}

// picture draws half a minute of the live view.
func picture(o *opened) {
	for o.f.reports() < 30 {
		time.Sleep(100 * time.Millisecond)
	}
	data, err := o.Screenshot()
	o.must(err)
	o.must(os.WriteFile(*screenshot, data, 0o644))
}

// browserFocus puts the focus on what a CSS selector names.
func browserFocus(p *browser.Page, selector string) error {
	return p.Until(fmt.Sprintf(`(e => (e.focus(), document.activeElement === e))(document.querySelector(%q))`, selector))
}

// Whatever a name holds is text.
func hostileNames(o *opened) {
	o.must(o.Until(`(window.boom = () => { window.harmed = true; }, true)`))
	o.f.block("10.0.0.2:1000", "192.0.2.7:443", hostile, hostile)
	o.f.mu.Lock()
	o.f.class, o.f.rule = hostile, hostile
	o.f.worries = []status.Worry{{Kind: status.WorryTableFull, What: hostile, Text: hostile}}
	o.f.mu.Unlock()
	v := verdict("10.0.0.9:9", "192.0.2.9:8388", hostile, hostile)
	v.Interface, v.Error, v.Signals, v.Model, v.Scores.Labels = hostile, hostile, []string{hostile}, hostile, []string{hostile, "a", "b"}
	o.sendUntil("events", "192.0.2.9:8388", v, &event.Audit{Time: time.Now(), Action: hostile, Outcome: hostile, Asked: hostile, Error: hostile},
		&event.Reloaded{Time: time.Now(), Policy: hostile, Error: hostile}, &event.Waiting{Time: time.Now(), Interface: hostile, Error: hostile})
	const shown = `<img src=x onerror=boom()><script>boom()</script>"'&\u001b[31m\u202eevil`
	text := func(id string) {
		o.t.Helper()
		o.shows(id, shown)
	}
	for _, id := range []string{"rules", "events", "worries", "top", "chart-classes"} {
		text(id)
	}
	o.until(`document.querySelectorAll("#chart-classes canvas").length === 1`)
	o.must(o.Click(`#events a[href^="#flow/"]`))
	text("flow")
	o.must(o.Click(`nav a[href="#blocks"]`))
	text("blocks-list")
	o.f.treat("10.0.0.2/32", "192.0.2.7:8388")
	o.must(o.Click(`nav a[href="#pairs"]`))
	text("pairs-list")
	if n, err := browser.Value[int](o.Page, `document.querySelectorAll("img, main script, iframe, object").length`); err != nil || n != 0 {
		o.t.Errorf("%d elements were made of text, %v", n, err)
	}
	if harmed, err := browser.Value[bool](o.Page, `Boolean(window.harmed)`); err != nil || harmed {
		o.t.Errorf("it was executed: %v, %v", harmed, err)
	}
	o.fine()
	// And if the page's own script were made to write markup, or to run text, the browser
	// would not do it.
	for _, code := range []string{
		`(() => { try { document.body.innerHTML = "<b>"; return true } catch { return false } })()`,
		`(() => { const s = document.createElement("script"); try { s.textContent = "window.harmed = true"; document.body.append(s) } catch {} return Boolean(window.harmed) })()`,
		`(() => { try { setTimeout("window.harmed = true", 0); return true } catch { return false } })()`,
		`fetch("http://127.0.0.1:1/").then(() => true, () => false) === true`,
	} {
		if did, err := browser.Value[bool](o.Page, code); err != nil || did {
			o.t.Errorf("%s: %v, %v", code, did, err)
		}
	}
}

// Who knows the token lifts a block, after a question.
func undo(o *opened) {
	o.f.block("10.0.0.2:1000", "192.0.2.7:443", "shadowsocks", "tunnels")
	o.f.block("10.0.0.3:1000", "192.0.2.7:8388", "shadowsocks", "tunnels")
	o.until(`!document.getElementById("login").hidden && document.activeElement.name === "token"`)
	if text, err := browser.Value[string](o.Page, `document.body.innerText`); err != nil || strings.Contains(text, "eth0") {
		o.t.Errorf("it shows %q without the token, %v", text, err)
	}
	o.must(o.Press("wrong-wrong-wrong\r"))
	o.shows("login-error", "missing or wrong")
	o.must(o.Press(token + "\r"))
	o.shows("state", "daemon 1")
	o.must(o.Click(`nav a[href="#blocks"]`))
	o.shows("blocks-count", "2 of 2")
	o.must(o.Type(`#blocks-search input[name="cidr"]`, "10.0.0.3\r"))
	o.shows("blocks-count", "1 of 1")
	undo := `#blocks-list button`
	o.must(o.Click(undo))
	o.shows("confirm-what", "192.0.2.7:8388")
	// No, and the next question before the browser tells the page that the dialog was closed,
	// which it does with its next frame.
	o.until(fmt.Sprintf(`(document.querySelector('#confirm button[value="no"]').click(), document.querySelector(%q).click(), true)`, undo))
	o.until(`document.getElementById("confirm").open`)
	if o.f.blocked() != 2 {
		o.t.Fatal("it was lifted although nobody said yes")
	}
	o.must(o.Click(`#confirm button[value="yes"]`))
	o.shows("blocks-count", "0 of 0")
	if o.f.blocked() != 1 {
		o.t.Errorf("%d blocks are left", o.f.blocked())
	}
	o.must(o.Type(`#blocks-search input[name="class"]`, "\x1b"))
	o.must(browserFocus(o.Page, `#blocks-search input[name="cidr"]`))
	if _, err := browser.Value[string](o.Page, `document.querySelector('#blocks-search input[name="cidr"]').value = "10.0.0.1/8"`); err != nil {
		o.t.Fatal(err)
	}
	o.must(o.Press("\r"))
	o.shows("blocks-count", "is 10.0.0.0/8 meant?")

	// The same for a pair, and for the flow that the page tells of.
	o.f.treat("10.0.0.2/32", "192.0.2.7:8388")
	o.must(o.Click(`nav a[href="#pairs"]`))
	o.shows("pairs-count", "1 of 1")
	o.must(o.Click(`#pairs-list button`))
	o.shows("confirm-what", "10.0.0.2/32 connect to 192.0.2.7:8388 again")
	o.must(o.Click(`#confirm button[value="yes"]`))
	o.shows("pairs-count", "0 of 0")
	o.must(o.Click(`nav a[href="#live"]`))
	o.sendUntil("events", "10.0.0.2:1000", verdict("10.0.0.2:1000", "192.0.2.7:443", "shadowsocks", "tunnels"))
	o.until(`([...document.querySelectorAll("#events a")].find(a => a.innerText.includes("10.0.0.2:1000"))?.click(), !document.getElementById("flow").hidden)`)
	o.shows("flow", "dropped 12 packets")
	o.must(o.Click(`#flow button`))
	o.must(o.Click(`#confirm button[value="yes"]`))
	o.until(`!document.getElementById("flow").innerText.includes("dropped 12 packets")`)
	if o.f.blocked() != 0 {
		o.t.Errorf("%d blocks are left", o.f.blocked())
	}
	for _, url := range o.Requests() {
		if strings.Contains(url, token) {
			o.t.Errorf("the token is in an address: %s", url)
		}
	}
}

// keepPast has a history of 150 flows, each fifth of them detected, of which one is blocked.
func (o *opened) keepPast() {
	var all []*event.Verdict
	for i := range 150 {
		class := "background"
		if i%5 == 0 {
			class = "shadowsocks"
		}
		all = append(all, verdict(fmt.Sprintf("10.0.1.%d:4000", i+1), "192.0.2.7:8388", class, "tunnels"))
	}
	all[145].PolicyLine = 12
	o.f.keep(o.t, all...)
	o.f.block("10.0.1.146:4000", "192.0.2.7:8388", "shadowsocks", "tunnels")
}

// The history is searched, and a flow of it has an address of its own.
func past(o *opened) {
	o.must(o.Click(`nav a[href="#history"]`))
	o.shows("history-count", "30 events")
	o.must(o.Choose(`#history-search select[name="what"]`, "event=verdict"))
	o.must(o.Type(`#history-search input[name="server"]`, "192.0.2.7:8388\r"))
	o.shows("history-count", "100 events and more")
	o.must(o.Click("#history-more"))
	o.shows("history-count", "150 events")
	o.until(`document.getElementById("history-more").hidden`)
	o.must(o.Type(`#history-search input[name="cidr"]`, "10.0.1.146\r"))
	o.shows("history-count", "1 event,")
	o.must(o.Click(`#history-list a`))
	for _, text := range []string{"10.0.1.146:4000 > 192.0.2.7:8388", "line 12 of /etc/earlydrop/policy.yaml", "dropped 12 packets, 8.8 KiB", "3 of 4 flows detected; treated by tunnels"} {
		o.shows("flow", text)
	}
	for _, text := range []string{"0.4000: by how much the probability of shadowsocks falls without it", "+0.4000\tall payload", "2\tresponder\t12.5 ms\t1.5 KiB"} {
		o.shows("flow-explained", text)
	}
	o.until(`document.querySelector("#flow-explained svg g title").textContent.startsWith("<img src=x onerror=boom()>")`)
	o.until(`document.querySelectorAll("#flow-explained canvas").length === 1 && document.querySelectorAll("#flow-explained img, #flow-explained script").length === 0`)
	o.fine()
	// As somebody sees it who was sent the address.
	address, err := browser.Value[string](o.Page, "location.href")
	o.must(err)
	o.until("(location.reload(), true)")
	o.shows("flow", "line 12 of /etc/earlydrop/policy.yaml")
	o.until(fmt.Sprintf("location.href === %q", address))
	o.until(`(location.hash = "flow/none", true)`)
	o.shows("flow", "none")
	o.must(o.Click(`nav a[href="#history"]`))
	o.must(o.Type(`#history-search input[name="server"]`, "x\r"))
	o.shows("history-count", "server")
}

// What was asked first, and answered last, is not shown over what was asked then.
func lateAnswer(o *opened) {
	late := make(chan struct{})
	defer func() {
		if late != nil {
			close(late)
		}
	}()
	o.f.block("10.0.0.2:1000", "192.0.2.7:443", "shadowsocks", "tunnels")
	o.f.mu.Lock()
	o.f.late = late
	o.f.mu.Unlock()
	o.must(o.Click(`nav a[href="#blocks"]`))
	o.must(o.Type(`#blocks-search input[name="cidr"]`, "x\r"))
	const refused = `document.getElementById("blocks-count").className === "worry"`
	o.until(refused)
	const answers = `performance.getEntriesByType("resource").filter(e => e.name.includes("/api/blocks?")).length`
	before, err := browser.Value[int](o.Page, answers)
	o.must(err)
	close(late)
	late = nil
	o.until(fmt.Sprintf("%s > %d", answers, before))
	// It has been read by the time that the page has done something else.
	o.until(`(window.waits ??= setTimeout(() => { window.waited = true; }, 300), window.waited === true)`)
	o.until(refused + ` && document.getElementById("blocks-list").innerText === ""`)
}

// Nothing is wider than the page, from a telephone to a large screen.
func widths(o *opened) {
	o.f.block("[2001:db8:1111:2222:3333:4444:5555:6666]:40000", "[2001:db8:1111:2222:3333:4444:5555:7777]:8388", strings.Repeat("c", 15), strings.Repeat("r", 15))
	o.sendUntil("events", "7777]:8388", verdict("[2001:db8:1111:2222:3333:4444:5555:6666]:40000", "[2001:db8:1111:2222:3333:4444:5555:7777]:8388", "shadowsocks", strings.Repeat("rule", 20)))
	for _, view := range []string{"live", "blocks", "pairs", "history", "flow/1"} {
		o.until(fmt.Sprintf(`(location.hash = %q, true)`, view))
		for _, width := range []int64{360, 800, 1600} {
			o.must(o.Resize(width, 800))
			o.until(fmt.Sprintf(`innerWidth === %d && document.documentElement.scrollWidth <= %[1]d`, width))
		}
	}
	o.fine()
}

// A daemon that ends is told of.
func noDaemon(o *opened) {
	o.shows("state", "daemon 1")
	o.f.door.Close()
	o.shows("state", "no daemon listens at")
	o.s.Close()
	o.shows("state", "does not answer")
}
